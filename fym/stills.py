"""The camera's motion of a clip over other scenes, of which the model itself draws a still each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fym.cache import get_or_make
from fym.camera import course, seen_from
from fym.families.base import Family
from fym.generate import generate
from fym.video import Clip


def in_scenes(
    family: Family, clips: Sequence[Clip], scenes: Sequence[str], cache: Path, *, seed: int, writes: bool
) -> list[tuple[Clip, str]]:
    """Each clip's camera over every scene, with the scene's caption. cache: where the stills are kept."""
    made = []
    for clip in clips if scenes else ():
        way = course(clip.tracks)
        for number, scene in enumerate(scenes):
            frame = still(family, scene, clip.frames.shape[1:3], cache, seed=seed + number, writes=writes)
            made.append((replace(clip, frames=torch.from_numpy(seen_from(frame.numpy(), way))), scene))
    return made


def still(family: Family, scene: str, size: Sequence[int], cache: Path, *, seed: int, writes: bool) -> Tensor:
    """(H,W,3) uint8, a clip of one frame from the model without adapters."""
    height, width = size
    key = {"still": scene, "seed": seed, "size": [height, width], "model": family.model_hash}

    def draw() -> dict[str, Tensor]:
        made = generate(family, [scene], motion=None, seeds=[seed], num_frames=1, height=height, width=width)
        return {"still": made[0][0]}

    return get_or_make(cache, key, draw, writes=writes)["still"]
