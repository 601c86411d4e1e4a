"""The camera: where in the world the frame looks, and the moves it can make.

World and frame are measured in pixels of a 48 pixel frame; a camera at rest maps each point to itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

SIZE = 48


@dataclass(frozen=True)
class Camera:
    """Per frame: the world point at the middle of the picture, the magnification, the turn.

    frame = zoom * R(-roll) (world - centre) + 24, the exact transform of every rendered point.
    """

    centre: np.ndarray = field(default_factory=lambda: np.full((1, 2), SIZE / 2))  # (F, 2) or (1, 2)
    zoom: np.ndarray = field(default_factory=lambda: np.ones(1))  # (F,) or (1,)
    roll: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (F,) or (1,), radians, clockwise

    @property
    def moves(self) -> bool:
        return any(len(x) > 1 for x in (self.centre, self.zoom, self.roll))

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """World points (F, 2) -> frame positions (F, 2)."""
        x, y = (points - self.centre).T
        c, s = np.cos(self.roll), np.sin(self.roll)
        return self.zoom[:, None] * np.stack([c * x + s * y, c * y - s * x], 1) + SIZE / 2

    def to_world(self, size: int) -> tuple[Tensor, Tensor]:
        """World coordinates x, y (F or 1, size, size) of the pixel centres."""
        axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (SIZE / size) - SIZE / 2
        zoom, roll = (torch.as_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.zoom, self.roll))
        centre = torch.as_tensor(self.centre, dtype=torch.float32)[:, :, None, None]
        u, v = axis[None, None, :] / zoom, axis[None, :, None] / zoom
        c, s = torch.cos(roll), torch.sin(roll)
        return c * u - s * v + centre[:, 0], s * u + c * v + centre[:, 1]


Move = Callable[[np.ndarray, np.random.Generator], Camera]


def _pan(x: int, y: int) -> Move:
    def camera(t: np.ndarray, rng: np.random.Generator) -> Camera:
        length = rng.uniform(14, 28)
        return Camera(centre=SIZE / 2 + (t[:, None] - 0.5) * length * np.array([x, y]))

    return camera


def _zoom(sign: int) -> Move:
    def camera(t: np.ndarray, rng: np.random.Generator) -> Camera:
        ratio = rng.uniform(1.5, 2.2)
        return Camera(zoom=ratio ** (sign * (t - 0.5)))

    return camera


def _shake(t: np.ndarray, rng: np.random.Generator) -> Camera:
    """Sums of sinusoids of 2 to 5 periods a clip on both axes, 2 to 4 pixels in size."""
    shift = np.stack(
        [
            sum(np.sin(2 * math.pi * (f * t + rng.uniform())) for f in rng.uniform(2, 5, 2)) / 2
            for _ in range(2)
        ],
        1,
    )
    return Camera(centre=SIZE / 2 + shift * rng.uniform(2, 4))


def _wander(t: np.ndarray, rng: np.random.Generator) -> Camera:
    """A smooth random way, two times in five also with a changing magnification or turn."""
    way = np.stack([_swing(t, rng) for _ in range(2)], 1) * rng.uniform(8, 26)
    zoom = 1.9 ** (_swing(t, rng) * rng.uniform(0.4, 1)) if rng.random() < 0.4 else np.ones(1)
    roll = _swing(t, rng) * rng.uniform(0.4, 1.3) if rng.random() < 0.4 else np.zeros(1)
    return Camera(SIZE / 2 + way, zoom, roll)


def course(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(F,) three random sinusoids of 0.2 to 1.7 periods, added up."""
    out = np.zeros(len(t))
    for frequency in rng.uniform(0.2, 1.7, 3):
        out += rng.normal() * np.sin(2 * math.pi * (frequency * t + rng.uniform())) / (0.5 + frequency)
    return out


def _swing(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(F,) a course of range 1 around 0."""
    out = course(t, rng)
    return (out - out.mean()) / max(float(np.ptp(out)), 1e-6)


# What the caption says -> the move.
CAMERA_MOVES: dict[str, Move] = {
    "pans left": _pan(-1, 0),
    "pans right": _pan(1, 0),
    "tilts up": _pan(0, -1),
    "tilts down": _pan(0, 1),
    "zooms in": _zoom(1),
    "zooms out": _zoom(-1),
    "shakes": _shake,
    "wanders": _wander,
}
