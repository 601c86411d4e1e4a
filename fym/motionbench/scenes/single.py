"""Motions of one object: the paths the embedded model never saw, and changes of size and turn.

Lengths are pixels of a 48 pixel frame.
"""

from __future__ import annotations

import math

import numpy as np

from fym.embedded.scenes import UNSEEN_MOTIONS, Camera
from fym.embedded.scenes.motions import FRAMES, fit
from fym.motionbench.scenes.motion import Body, Motion

RADIUS = 7.0


def _breathing(t: np.ndarray) -> Body:
    """It grows and shrinks twice while it goes to and fro."""
    path = np.stack([24 + 9 * np.sin(2 * math.pi * t), 24 + 5 * np.sin(2 * math.pi * t)], 1)
    return Body(path, 7.5 - 2.5 * np.cos(4 * math.pi * t))


def _rocking(t: np.ndarray) -> Body:
    """Like a boat: it turns to and fro about a point below it."""
    angle = 0.7 * np.sin(4 * math.pi * t)
    path = np.stack([24 + 14 * np.sin(angle), 38 - 14 * np.cos(angle)], 1)
    return Body(path, np.full(1, 8.5), angle)


def _approach(t: np.ndarray) -> Body:
    """In a bend from far to near."""
    a = 0.5 * math.pi * t
    return Body(np.stack([11 + 18 * np.sin(a), 11 + 18 * (1 - np.cos(a))], 1), 4.0 * 2.7**t)


CHANGING = {"breathing": _breathing, "rocking": _rocking, "approach": _approach}
TURNING = ("roll", "rocking")  # not to be seen on a circle
NAMES = (*UNSEEN_MOTIONS, *CHANGING)


def single_motion(name: str, seed: int) -> Motion:
    """The motion of that name of one object."""
    t = np.linspace(0, 1, FRAMES)
    if name in CHANGING:
        body = CHANGING[name](t)
    else:
        path = fit(UNSEEN_MOTIONS[name](t, np.random.default_rng(seed)), RADIUS + 2)
        angle = 4 * math.pi * t**2 if name == "roll" else np.zeros(1)
        body = Body(path, np.full(1, RADIUS), angle)
    return Motion((body,), Camera(), FRAMES)
