"""Which weights a model has: a digest that changes with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# Files larger than WHOLE are hashed in part: PIECE bytes at every STEP. Fine-tuning changes all weights, so
# pieces tell models apart, and 28 GB take a second instead of half a minute.
WHOLE, PIECE, STEP = 64 << 20, 64 << 10, 16 << 20
UNHASHED = ("_diffusers_version", "_name_or_path")  # of the config: they say nothing about the weights


def fingerprint(folder: Path) -> str:
    """sha256 over the transformer's config and its weight files, the large ones in evenly spread pieces."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    digest = hashlib.sha256()
    kept = {key: value for key, value in config.items() if key not in UNHASHED}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for place in [*range(0, size, STEP), size - PIECE]:
                file.seek(place)
                digest.update(file.read(PIECE))
    return digest.hexdigest()
