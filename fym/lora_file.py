"""One adapter as a safetensors file in the layouts that other programs read, and back from any of them.

The layouts differ in the names of the tensors and in where alpha stands; the values are the same. Each file
carries fym's record as JSON in its header, which no other program minds: the head map, the model it belongs
to, and a digest of everything. Reading trusts nothing: a file that is not exactly what such a file must be is
refused with one sentence.
d channels, r rank, n active heads of a layer, D head dim.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fym.adapters import HeadLora
from fym.checkpoint import digest
from fym.errors import UserError
from fym.lora_checks import FORMAT, check_container, parse_record, refuse
from fym.lora_layouts import LAYOUTS, Layout, fuse, split

HEADER = "fym"  # the key of the JSON record in the safetensors header
PEFT = "lora_adapter_metadata"  # that of diffusers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def serialise(
    adapter: HeadLora,
    about: Mapping[str, Any],
    *,
    layout: str = "fym",
    dtype: str = "float32",
    compact: bool = False,
) -> bytes:
    """The whole file. compact keeps the rows of active heads alone, which no other program understands.

    Raises UserError where a value does not fit into dtype, or the model's family has no such layout.
    """
    family = about.get("family", "wan")
    names = LAYOUTS[family].get(layout)
    if names is None or (names.after and "o" in adapter.targets):
        raise UserError(
            f"There is no {layout} layout of this motion file",
            f"fym knows no published names for such adapters of {family} models in that program",
            "Use --to diffusers",
        )
    groups = _groups(about, len(adapter.heads))
    full = adapter.state_dict() if compact else adapter.to_full()
    if names.after:
        full = fuse(full, names, groups)
    tensors: dict[str, Tensor] = {}
    for key, tensor in full.items():
        layer, projection, matrix = key.removeprefix("blocks.").split(".")
        stem = names.stem_of(int(layer), projection, groups)
        stored = tensor.detach().cpu().to(DTYPES[dtype]).contiguous()
        if not stored.isfinite().all():
            raise UserError(
                f"{stem} does not fit into {dtype}",
                "some of its values are too large",
                "Use bfloat16 or smaller weights",
            )
        tensors[f"{stem}.{names.ends[matrix == 'lora_B']}"] = stored
        if names.alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(float(adapter.alpha * len(projection)))
    record = {
        **about,
        "format": FORMAT,
        "compact": compact,
        "heads": [heads.tolist() for heads in adapter.heads],
        "num_heads": adapter.num_heads,
        "head_dim": adapter.head_dim,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": adapter.targets,
    }
    record.pop("sha256", None)
    record = json.loads(json.dumps(record))  # as it will be read: the digest is of its text
    record["sha256"] = digest(tensors, json.dumps(record, sort_keys=True))
    header = {HEADER: json.dumps(record, sort_keys=True)}
    if not names.alpha:
        header[PEFT] = _peft(record, names)
    return _ordered(save(tensors, metadata=header))


def _peft(record: Mapping[str, Any], layout: Layout) -> str:
    """The configuration that diffusers reads alpha from, as it writes it itself."""
    stems = {name.rpartition(".lora_")[0].removeprefix("transformer.") for name in _tensors(record, layout)}
    config = {"r": record["rank"], "lora_alpha": record["alpha"], "target_modules": sorted(stems)}
    return json.dumps({f"transformer.{key}": value for key, value in config.items()})


def _ordered(data: bytes) -> bytes:
    """The file with its header's entries sorted: safetensors shuffles them, equal runs make equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if len(header["__metadata__"]) < 2:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def read(path: Path) -> tuple[HeadLora, dict[str, Any]]:
    """The adapter of a file in any layout, float32 and frozen, and fym's record.

    Raises UserError for everything that is not whole and consistent: what the file is instead, other or fewer
    or more tensors than the record describes, other shapes, values that are not finite or not those written.
    """
    check_container(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            record = parse_record(header.get(HEADER))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            layout = _layout(record, slices)
            wanted = _tensors(record, layout)
            _check_shapes(wanted, {name: tuple(part.get_shape()) for name, part in slices.items()})
            found = {name: file.get_tensor(name).clone() for name in wanted}
        _check_values(found, record, layout)
        if not layout.alpha and header.get(PEFT) != _peft(record, layout):
            raise ValueError(f"{PEFT} in its header, where diffusers reads alpha, is not that of its record")
        return _adapter(found, record, layout), record
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        refuse(path, str(error).partition("\n")[0] or type(error).__name__, error)


def _groups(record: Mapping[str, Any], layers: int) -> Sequence[int]:
    groups: Sequence[int] = record.get("layer_groups", (layers,))
    return groups


def _layout(record: Mapping[str, Any], names: Mapping[str, Any]) -> Layout:
    family = record.get("family", "wan")
    if family not in LAYOUTS:
        raise ValueError(f"it is for a model of the family {family:.40}, which this version of fym lacks")
    groups, compact = _groups(record, len(record["heads"])), record.get("compact")
    for layout in LAYOUTS[family].values():
        starts = tuple(stem.partition("{")[0] for stem in layout.stems)
        whole = len(starts) == len(groups) and not (compact and layout.after)
        if whole and all(name.startswith(starts) for name in names):
            return layout
    known = " and ".join(name for name in LAYOUTS[family] if name != "fym")
    raise ValueError(f"its tensors are named in none of the layouts of {family} models: {known}")


def _tensors(record: Mapping[str, Any], layout: Layout) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors that a record announces."""
    d, rank = record["num_heads"] * record["head_dim"], record["rank"]
    groups = _groups(record, len(record["heads"]))
    wanted: dict[str, tuple[int, ...]] = {}
    for layer, heads in enumerate(record["heads"]):
        part = len(heads) * record["head_dim"] if record.get("compact") else d
        for p in layout.parts(record["targets"]) if heads else ():
            stem = layout.stem_of(layer, p, groups)
            ranks, up = rank * len(p), len(p) + layout.rows_after(layer, groups)
            wanted[f"{stem}.{layout.ends[0]}"] = (ranks, part if p == "o" else d)
            wanted[f"{stem}.{layout.ends[1]}"] = (d if p == "o" else part * up, ranks)
            if layout.alpha:
                wanted[f"{stem}.alpha"] = ()
    return wanted


def _check_shapes(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != shape:
            raise ValueError(f"{name} has the shape {found[name]}, and its header announces {shape}")
    for name in found:
        if name not in wanted:
            raise ValueError(f"{name:.80} is in it, a layer that its header does not announce")


def _check_values(tensors: Mapping[str, Tensor], record: dict[str, Any], layout: Layout) -> None:
    """ValueError unless the values are numbers and those that were written (unknown without a digest)."""
    alpha = record["alpha"] * len(layout.parts("q")[0])
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
        if name.endswith(".alpha") and not math.isclose(tensor.item(), alpha, rel_tol=1e-6):
            raise ValueError(f"{name} is {tensor.item()}, and its header says {alpha}")
    written = {key: value for key, value in record.items() if key != "sha256"}
    if "sha256" in record and record["sha256"] != digest(tensors, json.dumps(written, sort_keys=True)):
        raise ValueError("its content is not what was written, as its checksum tells")


def _adapter(tensors: Mapping[str, Tensor], record: Mapping[str, Any], layout: Layout) -> HeadLora:
    options = {name: record[name] for name in ("num_heads", "head_dim", "rank", "alpha", "targets")}
    adapter = HeadLora(record["heads"], **options)
    groups = _groups(record, len(record["heads"]))
    named = {
        f"blocks.{layer}.{p}.{matrix}": tensors[f"{layout.stem_of(layer, p, groups)}.{end}"]
        for layer, heads in enumerate(record["heads"])
        for p in (layout.parts(record["targets"]) if heads else "")
        for matrix, end in zip(("lora_A", "lora_B"), layout.ends, strict=True)
    }
    if layout.after:
        named = split(named, record["rank"])
    if record.get("compact"):
        adapter.load_state_dict(named)
    else:
        adapter.load_full(named)
    return adapter.requires_grad_(False)
