"""The motion file: an ordinary LoRA that diffusers and ComfyUI load, with what fym needs in its header.

The temporal adapter is the motion file; the spatial one, if any, lies beside it in a file of the same form.
`fym.lora_file` says what such a file is made of, `fym.convert` makes others of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata as versions
from pathlib import Path
from typing import Any

from fym import __version__
from fym.adapters import HeadLora
from fym.errors import UserError
from fym.families.base import Family
from fym.files import write_file
from fym.lora_file import read, serialise


@dataclass(frozen=True)
class MotionFile:
    """A loaded motion file. metadata: model_id, model_hash, caption, frames, seed, versions, ..."""

    temporal: HeadLora
    spatial: HeadLora | None
    metadata: dict[str, Any]

    def acting(self) -> list[tuple[HeadLora, float]]:
        """The temporal adapter's parts, each with the noise level from which on it acts (0 to 1).

        One part for a tuned motion; those of a composed file (`fym.convert`) may differ in that level.
        """
        parts, start, found = self.metadata.get("parts", []), 0, []
        if len({part["lowest_noise"] for part in parts}) < 2:
            return [(self.temporal, float(self.metadata.get("lowest_noise", 0.0)))]
        for part in parts:
            stop = start + part["rank"]
            found.append((self.temporal.ranks(start, stop), float(part["lowest_noise"])))
            start = stop
        return found

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale that it, or the least that a part of it, is meant for; None = the model's."""
        records = [self.metadata, *self.metadata.get("parts", [])]
        return min((float(its["guidance_scale"]) for its in records if "guidance_scale" in its), default=None)


def spatial_path(path: Path) -> Path:
    """Where the spatial adapter of a motion file lies: spatial.safetensors beside motion.safetensors, else
    NAME.spatial.safetensors beside NAME.safetensors."""
    name = "spatial" if path.stem == "motion" else f"{path.stem}.spatial"
    return path.with_name(f"{name}.safetensors")


def save_motion_file(
    path: Path, temporal: HeadLora, spatial: HeadLora | None, metadata: Mapping[str, Any]
) -> None:
    """Writes the motion file and, where there is one, the spatial adapter beside it; each is whole or absent.

    metadata: JSON values; must hold model_id and model_hash.
    """
    about = {**metadata, "pair": pair_of(temporal, spatial), "versions": made_with()}
    if spatial is not None:
        write_file(spatial_path(path), serialise(spatial, {**about, "kind": "spatial"}))
    write_file(path, serialise(temporal, {**about, "kind": "temporal"}))


def load_motion_file(path: str | Path) -> MotionFile:
    """Reads a motion file, and its spatial adapter if that lies beside it.

    Raises UserError: no such file, damaged, not made by fym, or the spatial adapter of a run.
    """
    path = Path(path)
    temporal, about = read(path)
    if about["kind"] != "temporal":
        raise UserError(
            f"{path} is not a motion file",
            "it is the adapter of the look",
            "Give the motion.safetensors beside it",
        )
    return MotionFile(temporal, read_spatial(path, about), about)


def read_spatial(path: Path, about: Mapping[str, Any]) -> HeadLora | None:
    """The spatial adapter beside the motion file `path`; None where there is none or a foreign one."""
    beside = spatial_path(path)
    if not os.path.isfile(beside):  # Path.is_file raises where the name is too long
        return None
    found, its = read(beside)
    return found if its["pair"] == about["pair"] else None  # else a neighbour from another run


def check_same_model(files: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """UserError unless all motion files (name, record) were made with one model."""
    if not files:
        return
    first, its = files[0]
    for name, about in files[1:]:
        if about["model_hash"] != its["model_hash"]:
            raise UserError(
                f"{first} and {name} do not go together",
                f"they were made with different models, {its['model_id']} ({its['model_hash'][:8]}) and "
                f"{about['model_id']} ({about['model_hash'][:8]})",
                "Give motion files of one model",
            )


def check_matches(motion: MotionFile, family: Family) -> None:
    """UserError unless the motion file was made with this very model."""
    about = motion.metadata
    if about["model_hash"] != family.model_hash:
        raise UserError(
            "The motion file belongs to another model",
            f"it was made with {about['model_id']} ({about['model_hash'][:8]}), "
            f"this is {family.model_id} ({family.model_hash[:8]})",
            "Give that model with --model, or tune on this one",
        )
    size = family.num_layers, family.num_heads, family.head_dim
    for adapter in (motion.temporal, motion.spatial):
        its = (len(adapter.heads), adapter.num_heads, adapter.head_dim) if adapter is not None else size
        if its != size:
            raise UserError(
                "The motion file does not fit the model",
                "it is for {} layers of {} heads of {} channels, ".format(*its)
                + "the model has {} of {} of {}".format(*size),
                "Use another copy of it, or make it again with fym train",
            )


def made_with() -> dict[str, str]:
    """Versions for a file's record."""
    return {"fym": __version__} | {name: versions.version(name) for name in ("torch", "diffusers")}


def pair_of(*adapters: HeadLora | None) -> str:
    """A digest that ties the two files of a run together."""
    digest = hashlib.sha256()
    for adapter in adapters:
        for parameter in adapter.parameters() if adapter is not None else ():
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
