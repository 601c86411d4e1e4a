"""Paths through the frame that the embedded model is trained on.

Lengths are pixels of a 48 pixel frame; positions are (x, y), y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fym.embedded.scenes.camera import SIZE, course

FRAMES = 49
FPS = 16

Path = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def fit(path: np.ndarray, margin: float, size: int = SIZE) -> np.ndarray:
    """Shift (then shrink, when it must) a path so that it stays `margin` pixels inside the frame."""
    low, high = margin, size - margin
    span = path.max(0) - path.min(0)
    scale = min(1.0, float(((high - low) / np.maximum(span, 1e-6)).min()))
    path = (path - path.mean(0)) * scale + path.mean(0)
    path = path + np.maximum(low - path.min(0), 0.0)
    return path - np.maximum(path.max(0) - high, 0.0)


def _start(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(10, SIZE - 10, 2)


def _line(direction: tuple[int, int]) -> Path:
    def path(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        length = rng.uniform(14, 30)
        unit = np.array(direction) / math.hypot(*direction)
        return _start(rng) + (t[:, None] - 0.5) * length * unit

    return path


def _circle(sign: int) -> Path:
    def path(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        radius, turns, phase = rng.uniform(7, 13), rng.uniform(0.9, 1.6), rng.uniform(0, 2 * math.pi)
        a = phase + sign * 2 * math.pi * turns * t
        return _start(rng) + radius * np.stack([np.cos(a), np.sin(a)], 1)

    return path


def _still(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(_start(rng)[None], len(t), 0)


def _wander(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random path: a random course on each axis."""
    out = np.stack([course(t, rng) for _ in range(2)], 1)
    out = (out - out.mean(0)) / max(float(np.ptp(out, axis=0).max()), 1e-6) * rng.uniform(10, 30)
    return out + _start(rng)


MOTIONS: dict[str, tuple[str, Path]] = {
    "left": ("moving left", _line((-1, 0))),
    "right": ("moving right", _line((1, 0))),
    "up": ("moving up", _line((0, -1))),
    "down": ("moving down", _line((0, 1))),
    "up-left": ("moving up and left", _line((-1, -1))),
    "up-right": ("moving up and right", _line((1, -1))),
    "down-left": ("moving down and left", _line((-1, 1))),
    "down-right": ("moving down and right", _line((1, 1))),
    "clockwise": ("circling clockwise", _circle(1)),
    "counterclockwise": ("circling counterclockwise", _circle(-1)),
    "still": ("standing still", _still),
    "wander": ("wandering", _wander),
}
