"""The motion file: an ordinary LoRA that diffusers and ComfyUI load, with what fym needs in its header.

Keys diffusion_model.blocks.N.self_attn.{q,k,v,o}.lora_A.weight / .lora_B.weight / .alpha; the rows of heads
without an adapter are written out as zeros. The temporal adapter is the motion file; the spatial one, if any,
lies beside it in a file of the same form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata as versions
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fym import __version__
from fym.adapters import HeadLora
from fym.errors import UserError
from fym.families.base import Family
from fym.files import write_file

FORMAT = 1
HEADER = "fym"  # the key of the JSON record in the safetensors header
KEY = re.compile(r"diffusion_model\.(blocks\.\d+)\.self_attn\.([qkvo])\.(lora_[AB])\.weight")


@dataclass(frozen=True)
class MotionFile:
    """A loaded motion file. metadata: model_id, model_hash, caption, frames, seed, versions, ..."""

    temporal: HeadLora
    spatial: HeadLora | None
    metadata: dict[str, Any]


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
    pair = _pair(temporal, spatial)
    about = {
        **metadata,
        "format": FORMAT,
        "pair": pair,
        "versions": {"fym": __version__} | {name: versions.version(name) for name in ("torch", "diffusers")},
    }
    if spatial is not None:
        write_file(spatial_path(path), _serialise(spatial, {**about, "kind": "spatial"}))
    write_file(path, _serialise(temporal, {**about, "kind": "temporal"}))


def load_motion_file(path: str | Path) -> MotionFile:
    """Reads a motion file, and its spatial adapter if that lies beside it.

    Raises UserError: no such file, damaged, not made by fym, or the spatial adapter of a run.
    """
    path = Path(path)
    temporal, about = _read(path)
    if about["kind"] != "temporal":
        raise UserError(
            f"{path} is not a motion file",
            "it is the adapter of the look",
            "Give the motion.safetensors beside it",
        )
    beside = spatial_path(path)
    spatial = None
    if beside.is_file():
        found, its = _read(beside)
        spatial = found if its["pair"] == about["pair"] else None  # a neighbour from another run
    return MotionFile(temporal, spatial, about)


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


def _serialise(adapter: HeadLora, about: Mapping[str, Any]) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.to_full().items():
        block, projection, matrix = name.rsplit(".", 2)
        stem = f"diffusion_model.{block}.self_attn.{projection}"
        tensors[f"{stem}.{matrix}.weight"] = tensor.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(adapter.alpha))
    record = {
        **about,
        "heads": [heads.tolist() for heads in adapter.heads],
        "num_heads": adapter.num_heads,
        "head_dim": adapter.head_dim,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": adapter.targets,
    }
    # One entry only: safetensors writes several in a random order, and equal runs should make equal files.
    return save(tensors, metadata={HEADER: json.dumps(record, sort_keys=True)})


def _read(path: Path) -> tuple[HeadLora, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} cannot be read", "there is no such file", "fym train writes motion files")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            names = {name: KEY.fullmatch(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            full = {".".join(m.groups()): file.get_tensor(name).clone() for name, m in names.items() if m}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a motion file", str(error), "Make it again with fym train") from error
    try:
        about = json.loads(header) if header else {}
        if about.get("format") != FORMAT:
            raise ValueError("its header is not one of this version of fym")
        adapter = HeadLora(
            about["heads"],
            num_heads=about["num_heads"],
            head_dim=about["head_dim"],
            rank=about["rank"],
            alpha=about["alpha"],
            targets=about["targets"],
        )
        adapter.load_full(full)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a motion file", str(error), "Make it again with fym train") from error
    return adapter.requires_grad_(False), about


def _pair(*adapters: HeadLora | None) -> str:
    """A digest that ties the two files of a run together."""
    digest = hashlib.sha256()
    for adapter in adapters:
        for parameter in adapter.parameters() if adapter is not None else ():
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
