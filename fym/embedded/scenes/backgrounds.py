"""What lies behind the objects: plain, shaded and patterned colours, gradients, noise, photo patches.

A background is a function of world coordinates, so a moving camera sees it move exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fym.embedded.scenes.camera import SIZE
from fym.embedded.scenes.colours import BACKGROUNDS, distinct, pattern

PATCH_SIZE = 96  # pixels of a photo or noise patch: it covers the world from -24 to 72
PHOTO_ATLAS = Path(__file__).parent / "photos.jpg"
PHOTOS = {"forest": 3, "meadow": 3, "cloudy": 2, "city": 2, "street": 2}  # name -> patches in the atlas
KINDS = ("plain", "shaded", "gradient", "striped", "checked", "rough", "photo")


@dataclass(frozen=True)
class Ground:
    """A background. `colour` names the colour, the first colour of a gradient, or the photo."""

    colour: str
    kind: str = "plain"
    second: str = ""  # the other colour of a gradient
    tint: float = 1.0  # brightness
    angle: float = 0.0  # of gradient and stripes, radians
    seed: int = 0  # of the noise; which patch, and its mirroring

    @property
    def name(self) -> str:
        """What a caption calls it, before the word background."""
        if self.kind == "gradient":
            return f"{self.colour} and {self.second} gradient"
        return self.colour if self.kind in ("plain", "shaded", "photo") else f"{self.kind} {self.colour}"

    @property
    def colours(self) -> list[tuple[float, ...]]:
        """Colours an object must differ from to be seen."""
        if self.kind == "photo":
            return _extremes(self.colour, self.seed)
        return [BACKGROUNDS[name] for name in (self.colour, self.second) if name]


def paint(ground: Ground, x: Tensor, y: Tensor) -> Tensor:
    """RGB in [0, 255] at world coordinates x, y (F, H, W): (F, H, W, 3), not clamped."""
    if ground.kind == "photo":
        picture = _sample(_photo(ground.colour, ground.seed), x, y).movedim(1, -1)
        return picture * ground.tint
    base = torch.tensor(BACKGROUNDS[ground.colour], dtype=torch.float32)
    c, s = math.cos(ground.angle), math.sin(ground.angle)
    u, v = c * x + s * y, c * y - s * x
    if ground.kind == "gradient":
        share = ((u - SIZE / 2 * (c + s)) / (1.2 * SIZE) + 0.5).clamp(0, 1)[..., None]
        picture = base + share * (torch.tensor(BACKGROUNDS[ground.second], dtype=torch.float32) - base)
    elif ground.kind in ("striped", "checked"):
        picture = base * (1 - 0.3 * pattern(ground.kind, u, v, 20.0))[..., None]
    elif ground.kind == "rough":
        picture = base + _sample(_noise(ground.seed), x, y).movedim(1, -1)
    elif ground.kind == "shaded":
        picture = base * (1.0 - 0.28 * y / SIZE).clamp(0.4, 1.3)[..., None]
    elif ground.kind == "plain":
        picture = base.expand(*x.shape, 3)
    else:
        raise ValueError(f"unknown background {ground.kind!r}; known: {', '.join(KINDS)}")
    return picture * ground.tint


def _sample(patch: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A patch (C, P, P) centred on the frame, mirrored beyond its border: (F, C, H, W)."""
    grid = torch.stack([x - SIZE / 2, y - SIZE / 2], -1) / (PATCH_SIZE / 2)
    return F.grid_sample(
        patch.expand(len(grid), *patch.shape), grid, padding_mode="reflection", align_corners=False
    )


def _noise(seed: int) -> Tensor:
    """(1, P, P) smooth noise of two scales, about +-40 in size."""
    rng = np.random.default_rng((5, seed))
    out = torch.zeros(1, 1, PATCH_SIZE, PATCH_SIZE)
    for cells, size in ((7, 30.0), (14, 12.0)):
        grid = torch.from_numpy(rng.normal(size=(1, 1, cells, cells))).float()
        out += size * F.interpolate(grid, size=(PATCH_SIZE, PATCH_SIZE), mode="bicubic", align_corners=False)
    return out[0]


@lru_cache(maxsize=1)
def _atlas() -> Tensor:
    with Image.open(PHOTO_ATLAS) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.unflatten(0, (-1, PATCH_SIZE)).movedim(-1, 1).float()  # (patches, 3, P, P)


def _photo(name: str, seed: int) -> Tensor:
    """(3, P, P): one of the patches of that name, mirrored by half of the seeds."""
    first = sum(
        count for other, count in PHOTOS.items() if list(PHOTOS).index(other) < list(PHOTOS).index(name)
    )
    patch = _atlas()[first + seed // 2 % PHOTOS[name]]
    return patch.flip(-1) if seed % 2 else patch


def _extremes(name: str, seed: int) -> list[tuple[float, ...]]:
    """Mean colours of the nine ninths of the middle of a photo."""
    middle = _photo(name, seed)[:, PATCH_SIZE // 4 : -PATCH_SIZE // 4, PATCH_SIZE // 4 : -PATCH_SIZE // 4]
    return [tuple(c) for c in F.adaptive_avg_pool2d(middle, 3).flatten(1).T.tolist()]


def visible_on(ground: Ground, colour: tuple[float, ...]) -> bool:
    """Whether an object of that colour stands out from the background (from most of a photo)."""
    seen = [distinct(colour, other) for other in ground.colours]
    return sum(seen) >= (0.75 if ground.kind == "photo" else 1.0) * len(seen)
