"""The colours of the world, and the textures painted with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fym import looks

BACKGROUNDS = dict(looks.COLOURS)
COLOURS = {name: rgb for name, rgb in BACKGROUNDS.items() if name not in ("grey", "pink", "brown", "cyan")}
TEXTURES = ("plain", "striped", "checked", "dotted")


def distinct(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two colours differ by more than 70 of 255 in some channel."""
    return looks.gap(a, b) > 70


def partner(colour: tuple[float, ...]) -> tuple[float, ...]:
    """The second colour of a texture: the same hue, darker, or lighter when it is dark already."""
    scale = 0.45
    if sum(colour) < 330:
        return tuple(c + (255 - c) * (1 - scale) for c in colour)
    return tuple(c * scale for c in colour)


def pattern(texture: str, x: Tensor, y: Tensor, period: float | Tensor) -> Tensor:
    """Share of the second colour in [0, 1] at (x, y); edges are one pixel wide. Any shape."""
    if texture == "plain":
        return torch.zeros_like(x)
    half = torch.as_tensor(period) / 2
    wave_x, wave_y = (_triangle_wave(v / half) for v in (x, y))  # in [-1, 1], zero on the edges
    if texture == "striped":
        signed = wave_x
    elif texture == "checked":
        signed = wave_x.sign() * wave_y.sign() * torch.minimum(wave_x.abs(), wave_y.abs())
    elif texture == "dotted":
        fold_x, fold_y = (torch.remainder(v, 2 * half) - half for v in (x, y))
        return (0.5 - (torch.hypot(fold_x, fold_y) - 0.6 * half)).clamp(0, 1)
    else:
        raise ValueError(f"unknown texture {texture!r}; known: {', '.join(TEXTURES)}")
    return (0.5 + signed * half / 2).clamp(0, 1)


def _triangle_wave(v: Tensor) -> Tensor:
    """Period 2, +1 in the middle of [0, 1], -1 in the middle of [1, 2]."""
    return (1 - (torch.remainder(v - 0.5, 2) - 1).abs() * 2) * -1
