"""Training state on disk: whole or absent, checked when read, nothing unpickled.

One safetensors file per checkpoint with a JSON record and a digest in its header, written under a temporary
name, synced and renamed; `latest` names the newest. A broken file is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fym.files import remove_parts, write_file

POINTER = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and a JSON record (numbers, texts, lists) under one name; names sort in the order of saving."""

    name: str
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint, points `latest` at it, then removes all but the newest `keep`."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    record = json.dumps(checkpoint.record, sort_keys=True)
    data = save(tensors, metadata={"record": record, "sha256": digest(tensors, record)})
    path = folder / f"{checkpoint.name}.safetensors"
    write_file(path, data)
    write_file(folder / POINTER, path.name)
    keep_newest(folder, keep)
    return path


def keep_newest(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` and the one of `latest`, and what a killed write left."""
    pointer = folder / POINTER
    latest = pointer.read_text("utf-8").strip() if pointer.is_file() else ""
    for old in _newest_first(folder)[max(keep, 1) :]:
        if old.name != latest:
            old.unlink(missing_ok=True)
    remove_parts(folder)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none."""
    pointer = folder / POINTER
    candidates = _newest_first(folder)
    if pointer.is_file():
        named = folder / pointer.read_text("utf-8").strip()
        candidates = [named, *(path for path in candidates if path != named)]
    for path in candidates:
        found = _load(path)
        if found is not None:
            return found
    return None


def progress(run_dir: Path) -> str:
    """Where a run goes on, in words."""
    found = load_checkpoint(run_dir / "checkpoints")
    if found is None:
        return "at the first step"
    return f"after step {found.record['step']} of the {found.record['stage']} stage"


def generator_state(generator: torch.Generator) -> Tensor:
    """The state of a random generator as a tensor that safetensors can hold."""
    return generator.get_state().clone()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), reverse=True)


def _load(path: Path) -> Checkpoint | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.get("sha256") != digest(tensors, metadata["record"]):
            return None
        return Checkpoint(path.stem, tensors, json.loads(metadata["record"]))
    except (OSError, RuntimeError, SafetensorError, KeyError, ValueError):
        # RuntimeError: a newer one took its place since the folder was listed.
        return None


def digest(tensors: Mapping[str, Tensor], record: str) -> str:
    """sha256 of a text and of the names, dtypes, shapes and bytes of contiguous CPU tensors, by name."""
    total = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
