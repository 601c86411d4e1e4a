"""Tensors that are costly to make (latents, text embeddings), kept on disk by what they depend on.

One safetensors file per key, written atomically and never unpickled. A file that does not load, or that was
made from something else, is made again: deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fym.files import write_file

LAYOUT = 1  # part of every key: raise it when what is stored changes its meaning


def get_or_make(
    cache_dir: str | Path,
    key_parts: Mapping[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
    *,
    writes: bool = True,
) -> dict[str, Tensor]:
    """The tensors stored for `key_parts`, or those of `make()`, stored (if it `writes`) before they are
    returned.

    key_parts: everything the result depends on (content hashes, sizes, dtypes, frame numbers) as JSON values.
    Returns CPU tensors, the same on the first call and on every later one. Raises TypeError for key parts
    that JSON cannot hold, UserError where the folder cannot be written.
    """
    description = describe(key_parts)
    path = Path(cache_dir) / f"{hashlib.sha256(description.encode()).hexdigest()[:32]}.safetensors"
    stored = _load(path, description)
    if stored is not None:
        return stored
    made = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in make().items()}
    if writes:
        write_file(path, save(made, metadata={"key": description}))
    return made


def describe(key_parts: Mapping[str, Any]) -> str:
    """The key as canonical text: the same for the same parts in any order, in any process."""
    return json.dumps({"layout": LAYOUT, "parts": dict(key_parts)}, sort_keys=True, allow_nan=False)


def _load(path: Path, description: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("key") != description:
                return None
            # clone: the file may be replaced while its pages are still mapped
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError):
        return None
