"""Motion files for other programs, and several adapters put into one file without changing what they do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fym.adapters import HeadLora
from fym.errors import UserError
from fym.files import write_file
from fym.lora_file import read, serialise
from fym.motion_file import check_same_model, made_with, pair_of, read_spatial, spatial_path

# Of a record: what describes the tensors of one file or ties it to its neighbour, and not the motion.
OF_THE_FILE = (
    *("format", "compact", "heads", "num_heads", "head_dim", "targets", "alpha", "pair", "sha256", "parts"),
)
SHARED = ("model_id", "model_hash", "family", "layer_groups", "versions")  # said once for a composed file


@dataclass(frozen=True)
class Member:
    """An adapter to put into a file: factor on what it adds to the weights, and its record."""

    adapter: HeadLora
    factor: float
    about: Mapping[str, Any]


def convert(
    files: Sequence[Path],
    output: Path,
    *,
    layout: str = "fym",
    dtype: str = "float32",
    weights: Sequence[float] = (1.0,),
    spatial: float = 0.0,
    compact: bool = False,
) -> tuple[HeadLora, dict[str, Any]]:
    """Writes motion files, each with its weight, as one file in a layout; returns its adapter and record.

    spatial: strength at which the spatial adapters beside the files are merged in, 0 = not at all. Raises
    UserError: a file is refused, the files are of different models, a spatial adapter is missing, compact in
    a layout of another program, or output is one of the inputs.
    """
    if compact and layout != "fym":
        raise UserError(
            f"A compact file in the layout {layout} is of no use",
            "no other program than fym understands it",
            "Leave out --compact, or use --to fym",
        )
    if len(weights) not in (1, len(files)):
        raise UserError(
            f"{len(weights)} weights do not go with {len(files)} files",
            "each file has its own, in the same order",
            "Give one --weight for all files or one for each",
        )
    members, records = [], []
    for path, weight in zip(files, weights if len(weights) > 1 else [*weights] * len(files), strict=True):
        adapter, about = read(path)
        for read_too in (path, spatial_path(path)):
            if os.path.exists(output) and os.path.exists(read_too) and output.samefile(read_too):
                raise UserError(f"{output} is not written", "it is read", "Choose another name with -o")
        records.append((str(path), about))
        members.append(Member(adapter, weight, about))
        if spatial:
            look = read_spatial(path, about) if about["kind"] == "temporal" else None
            if look is None:
                raise UserError(
                    f"{path} has no spatial adapter to merge",
                    f"{spatial_path(path).name} of the same run does not lie beside it",
                    "Put it there or leave out --merge",
                )
            members.append(Member(look, spatial, {**about, "kind": "spatial", "rank": look.rank}))
    check_same_model(records)
    if len(members) == 1 and members[0].factor == 1:
        merged, about = members[0].adapter, dict(members[0].about)
    else:
        merged, about = compose(members)
    write_file(output, serialise(merged, about, layout=layout, dtype=dtype, compact=compact))
    return merged, about


def compose(members: Sequence[Member]) -> tuple[HeadLora, dict[str, Any]]:
    """One adapter that does what all members do together, and its record.

    Their ranks stand one after another, with zeros where a member has no head or projection, and every factor
    is multiplied into B; so the scaling is 1, and the product is the sum of the members' products. The record
    lists the members as parts with their ranks, noise levels and records. Raises UserError for members of
    different sizes.
    """
    first = members[0].adapter
    sizes = {(len(m.adapter.heads), m.adapter.num_heads, m.adapter.head_dim) for m in members}
    if len(sizes) > 1:
        raise UserError(
            "The files do not go together",
            f"they are for different sizes (layers, heads, channels): {sorted(sizes)}",
            "Give motion files of one model",
        )
    rank = sum(member.adapter.rank for member in members)
    merged = HeadLora(
        [torch.cat([m.adapter.heads[layer] for m in members]) for layer in range(len(first.heads))],
        num_heads=first.num_heads,
        head_dim=first.head_dim,
        rank=rank,
        alpha=float(rank),
        targets=max((member.adapter.targets for member in members), key=len),
    )
    full = {name: torch.zeros_like(tensor) for name, tensor in merged.to_full().items()}
    start = 0
    for member in members:
        ranks = slice(start, start := start + member.adapter.rank)
        for name, tensor in member.adapter.to_full().items():
            if name.endswith("lora_A"):
                full[name][ranks] = tensor
            else:
                full[name][:, ranks] = tensor * (member.factor * member.adapter.scaling)
    merged.load_full(full)
    parts = [part for member in members for part in _parts(member)]
    about = {key: value for key, value in members[0].about.items() if key in SHARED}
    about |= {
        "kind": "temporal",
        "pair": pair_of(merged, None),
        "versions": made_with(),
        "caption": "; ".join(dict.fromkeys(str(part.get("caption", "")) for part in parts)),
        "lowest_noise": min(part["lowest_noise"] for part in parts),
        "parts": parts,
    }
    return merged.requires_grad_(False), about


def noise_levels(about: Mapping[str, Any]) -> list[float]:
    """From which noise level on each part of a file acts in fym."""
    if about.get("parts"):
        return [part["lowest_noise"] for part in about["parts"]]
    return [0.0 if about["kind"] == "spatial" else about.get("lowest_noise", 0.0)]


def _parts(member: Member) -> list[dict[str, Any]]:
    """A member's parts for the record of a composed file: those it has itself, or the one that it is."""
    about = member.about
    its_own = {key: value for key, value in about.items() if key not in (*OF_THE_FILE, *SHARED)}
    parts = about.get("parts") or [its_own | {"lowest_noise": noise_levels(about)[0]}]
    return [part | {"scale": part.get("scale", 1.0) * member.factor} for part in parts]
