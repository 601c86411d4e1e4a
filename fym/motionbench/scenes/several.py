"""Motions of two and three objects, seen from a camera at rest. Lengths are pixels of a 48 pixel frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fym.embedded.scenes import Camera
from fym.embedded.scenes.motions import FRAMES
from fym.motionbench.scenes.camera import ease
from fym.motionbench.scenes.motion import Body, Motion

RADIUS = {2: 5.5, 3: 5.0}
TAU = 2 * math.pi
Times = np.ndarray  # (F,) from 0 to 1
Paths = list[np.ndarray]  # (F, 2) of each object


def _xy(x: Times | float, y: Times | float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y), 1).astype(float)


def _ring(angle: Times, a: Times | float, b: Times | float) -> np.ndarray:
    return _xy(24 + a * np.cos(angle), 24 + b * np.sin(angle))


def _crossing(t: Times) -> Paths:
    sway = 10 * np.sin(TAU * t)
    return [_xy(9 + 30 * t, 24 + sway), _xy(39 - 30 * t, 24 + sway)]


def _orbiting(t: Times) -> Paths:
    a = TAU * 1.25 * t
    return [_ring(a, 13, 13), _ring(a + math.pi, 13, 13)]


def _wavy(u: Times) -> np.ndarray:
    return _xy(9 + 30 * u, 24 + 13 * np.sin(TAU * 1.25 * u))


def _following(t: Times) -> Paths:
    return [_wavy(0.4 + 0.6 * t), _wavy(0.6 * t)]


def _swapping(t: Times) -> Paths:
    """Half a turn about their middle, a rest, and the same way back."""
    a = math.pi * (ease((t - 0.08) / 0.36) - ease((t - 0.56) / 0.36))
    return [_ring(math.pi + a, 13, 10), _ring(a, 13, 10)]


def _mirror(t: Times) -> Paths:
    zig_zag = 13 * (np.abs((t * 2.5) % 1.0 * 2 - 1) - 0.5)
    return [_xy(15 + 0.7 * zig_zag, 10 + 28 * t), _xy(33 - 0.7 * zig_zag, 10 + 28 * t)]


def _meeting(t: Times) -> Paths:
    """Slantwise to each other, and apart again."""
    away = 15 - 9.5 * np.sin(math.pi * t) ** 2
    return [_xy(24 - away, 24 - 0.8 * away), _xy(24 + away, 24 + 0.8 * away)]


def _moon(t: Times) -> Paths:
    return [_xy(24 + 0 * t, 24), _ring(TAU * 1.75 * t - 1.0, 16, 13)]


def _leapfrog(t: Times) -> Paths:
    """One jumps over the other, which then jumps over it."""
    leaps = [(8.0, np.clip(2 * t, 0, 1)), (18.8, np.clip(2 * t - 1, 0, 1))]
    return [_xy(start + 21.6 * u, 37 - 24 * 4 * u * (1 - u)) for start, u in leaps]


def _overtaking(t: Times) -> Paths:
    """One quick at first, the other at last."""
    return [_xy(9 + 30 * (1 - (1 - t) ** 2.5), 16 + 3 * t), _xy(9 + 30 * t**2.5, 32 - 3 * t)]


def _see_saw(t: Times) -> Paths:
    lift = 13 * np.cos(TAU * 1.5 * t)
    return [_xy(13 + 0 * t, 24 + lift), _xy(35 + 0 * t, 24 - lift)]


def _cradle(t: Times) -> Paths:
    """Two pendulums that knock each other on: one hangs while the other swings."""
    swing = -0.45 * np.cos(TAU * 1.25 * t)
    hung = ((18.3, np.minimum(swing, 0)), (29.7, np.maximum(swing, 0)))
    return [_xy(x + 22 * np.sin(a), 10 + 22 * np.cos(a)) for x, a in hung]


def _pushing(t: Times) -> Paths:
    """One runs into the other and stops; the other goes on, up the slope, and slows down."""
    u = np.clip((t - 0.45) / 0.55, 0, 1)
    first = np.minimum(t / 0.45, 1)
    return [
        _xy(9 + 8 * first, 36 - 2 * first),
        _xy(28.5 + 11 * (1 - (1 - u) ** 2), 32 - 20 * (1 - (1 - u) ** 2)),
    ]


def _three_ways(t: Times) -> Paths:
    """A bounce, a zig-zag and a swing at once."""
    bounce = 12 * 4 * ((3 * t) % 1.0) * (1 - (3 * t) % 1.0)
    zig_zag = 10 * (np.abs((t * 2) % 1.0 * 2 - 1) - 0.5)
    return [
        _xy(8 + 32 * t, 40 - bounce),
        _xy(36 - 22 * t, 13 + zig_zag),
        _xy(40 + 0 * t, 24 + 12 * np.sin(TAU * 1.5 * t)),
    ]


def _carousel(t: Times) -> Paths:
    return [_ring(TAU * (1.1 * t + k / 3), 15, 13) for k in range(3)]


def _juggling(t: Times) -> Paths:
    """Three on one figure eight, a third of it apart."""
    return [
        _xy(24 + 15 * np.sin(TAU * u), 24 + 12 * np.sin(2 * TAU * u))
        for u in (0.9 * t + k / 3 for k in range(3))
    ]


def _scatter(t: Times) -> Paths:
    """From the middle outwards and back, on spokes."""
    away = 8 + 9 * np.sin(math.pi * t)
    return [_ring(np.full(1, TAU * (k / 3 + 0.08)), away, away) for k in range(3)]


def _swings(t: Times) -> Paths:
    """Two in step, each to and fro on a slant."""
    sway = np.sin(TAU * 1.5 * t)
    return [_xy(15 + 6 * sway, 15 + 5 * sway), _xy(33 + 6 * sway, 33 + 5 * sway)]


def _eights(t: Times) -> Paths:
    """Two on one lying figure eight, half of it apart."""
    a = TAU * t + 0.6
    return [_xy(24 + s * 14 * np.sin(a), 24 + 11 * np.sin(2 * a)) for s in (1, -1)]


SEVERAL: dict[str, Callable[[Times], Paths]] = {
    "crossing": _crossing,
    "orbiting": _orbiting,
    "following": _following,
    "swapping": _swapping,
    "mirror": _mirror,
    "meet and part": _meeting,
    "moon": _moon,
    "leapfrog": _leapfrog,
    "overtaking": _overtaking,
    "see-saw": _see_saw,
    "cradle": _cradle,
    "pushing": _pushing,
    "three ways": _three_ways,
    "carousel": _carousel,
    "juggling": _juggling,
    "scatter": _scatter,
    "swings": _swings,
    "eights": _eights,
}
NAMES = tuple(SEVERAL)
OBJECTS = {name: len(path(np.zeros(1))) for name, path in SEVERAL.items()}


def several_motion(name: str, seed: int) -> Motion:
    """The motion of that name of two or three objects."""
    paths = SEVERAL[name](np.linspace(0, 1, FRAMES))
    radius = np.full(1, RADIUS[len(paths)])
    return Motion(tuple(Body(path, radius) for path in paths), Camera(), FRAMES)
