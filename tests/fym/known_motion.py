"""Tracks with exactly known motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fym.tracks import Tracks


def tracks(
    move: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    frames: int = 13,
    size: tuple[int, int] = (100, 100),
    grid: int = 6,
    starts: tuple[int, ...] = (0,),
) -> Tracks:
    """Points of a grid whose position after t frames is move(grid (N,2), t (1,F,1)) (N,F,2)."""
    axis = (np.arange(grid) + 0.5) / grid
    place = np.stack(np.meshgrid(axis * size[1], axis * size[0]), -1).reshape(-1, 2) - 0.5
    born = np.repeat(starts, len(place))
    t = np.arange(frames)[None, :, None] - born[:, None, None]
    points = move(np.tile(place, (len(starts), 1))[:, None], t).astype(np.float32)
    points = np.broadcast_to(points, (len(born), frames, 2)).copy()
    return Tracks(points, np.ones(points.shape[:2], bool), born.astype(np.int64), size)


def pan(dx: float, dy: float = 0.0):
    return lambda p, t: p + t * np.array([dx, dy])


def zoom(rate: float, centre: float = 49.5):
    return lambda p, t: centre + (p - centre) * (1 + rate * t)


def halves(left: tuple[float, float], right: tuple[float, float], middle: float = 49.5):
    """The left half of the points moves by `left` a frame, the right half by `right`."""
    return lambda p, t: p + t * np.where(p[..., :1] < middle, left, right)


def rolling(degrees: float, centre: float = 49.5):
    def move(p, t):
        c, s = np.cos(np.radians(degrees) * t), np.sin(np.radians(degrees) * t)
        x, y = (p - centre)[..., :1], (p - centre)[..., 1:]
        return centre + np.concatenate([c * x - s * y, s * x + c * y], -1)

    return move
