"""Motions that are never in the training data: what tuning must teach, and which of them may choose settings.

Settings are chosen on DEVELOPMENT; TEST confirms them and is used for nothing else. Lengths are pixels of a
48 pixel frame; positions are (x, y), y down.
"""

from __future__ import annotations

import math

import numpy as np

from fym.embedded.scenes.backgrounds import Ground
from fym.embedded.scenes.camera import SIZE, Camera, Move
from fym.embedded.scenes.captions import PLACES, caption
from fym.embedded.scenes.motions import FRAMES, Path, fit
from fym.embedded.scenes.scene import Scene, Thing


def _figure_eight(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (t + rng.uniform())
    return 24 + np.stack([14 * np.sin(a), 10 * np.sin(2 * a)], 1)


def _spiral(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (1.75 * t + rng.uniform())
    radius = 3 + 11 * t
    return 24 + radius[:, None] * np.stack([np.cos(a), np.sin(a)], 1)


def _bounce(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = (t * 3) % 1.0
    height = 22 * (1 - 0.25 * np.floor(np.minimum(t * 3, 2.999))) * 4 * u * (1 - u)
    return np.stack([10 + 28 * t, 38 - height], 1)


def _pendulum(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = math.radians(50) * np.cos(2 * math.pi * 1.5 * t)
    return np.stack([24 + 26 * np.sin(a), 10 + 26 * np.cos(a)], 1)


def _zig_zag(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([9 + 30 * t, 24 + 20 * (np.abs((t * 2.5) % 1.0 * 2 - 1) - 0.5)], 1)


def _orbit(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (1.25 * t + rng.uniform())
    return 24 + np.stack([14 * np.cos(a), 5 * np.sin(a)], 1)


def _roll(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([10 + 28 * t**2, 16 + 20 * t**2], 1)


def _through(*corners: tuple[float, float]) -> Path:
    """Along straight lines from corner to corner, in equal times."""

    def path(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        marks = np.linspace(0, 1, len(corners))
        return np.stack([np.interp(t, marks, [c[axis] for c in corners]) for axis in range(2)], 1)

    return path


def _throw(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([10 + 28 * t, 38 - 28 * 4 * t * (1 - t)], 1)


def _hook(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Straight to the right, then three quarters of a turn."""
    straight = np.minimum(t / 0.4, 1.0)
    a = 1.5 * math.pi * np.clip((t - 0.4) / 0.6, 0, 1) - math.pi / 2
    return np.stack([10 + 16 * straight + 10 * np.cos(a), 26 + 10 * np.sin(a)], 1)


def _two_leaps(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = (2 * t) % 1.0
    return np.stack([24 + 4 * (t - 0.5), 38 - 26 * 4 * u * (1 - u)], 1)


def _wave(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([38 - 28 * t, 24 + 12 * np.sin(2 * math.pi * 2 * t)], 1)


def _hops(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = (3 * t) % 1.0
    return np.stack([38 - 28 * t, 36 - 20 * 4 * u * (1 - u)], 1)


def _swing(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """To and fro on a slant, twice."""
    return 24 + np.sin(4 * math.pi * t)[:, None] * np.array([13.0, 7.0])


UNSEEN_MOTIONS: dict[str, Path] = {
    "figure eight": _figure_eight,
    "spiral": _spiral,
    "bounce": _bounce,
    "pendulum": _pendulum,
    "zig-zag": _zig_zag,
    "orbit": _orbit,
    "roll": _roll,
    "square lap": _through((12, 12), (36, 12), (36, 36), (12, 36), (12, 12)),
    "stairs": _through((10, 38), (19, 38), (19, 28), (28, 28), (28, 18), (38, 18), (38, 10)),
    "there and back": _through((11, 14), (37, 32), (11, 14)),
    "triangle lap": _through((12, 36), (24, 12), (36, 36), (12, 36)),
    "up and over": _through((12, 36), (12, 12), (36, 12), (36, 36)),
    "hook": _hook,
    "two leaps": _two_leaps,
    "throw": _throw,
    "wave": _wave,
    "hops": _hops,
    "slanted swing": _swing,
    "letter w": _through((9, 13), (16, 35), (24, 15), (32, 35), (39, 13)),
}


def _back_and_forth(t: np.ndarray, rng: np.random.Generator) -> Camera:
    shift = 10 * np.sin(2 * math.pi * t)
    return Camera(centre=SIZE / 2 + np.stack([shift, np.zeros_like(t)], 1))


def _round(t: np.ndarray, rng: np.random.Generator) -> Camera:
    a = 2 * math.pi * t
    return Camera(centre=SIZE / 2 + 8 * np.stack([np.cos(a), np.sin(a)], 1))


def _slanted(t: np.ndarray, rng: np.random.Generator) -> Camera:
    return Camera(centre=SIZE / 2 + (t[:, None] - 0.5) * np.array([20.0, 14.0]))


def _turn(t: np.ndarray, rng: np.random.Generator) -> Camera:
    return Camera(roll=1.2 * (t - 0.5))


def _pulse(t: np.ndarray, rng: np.random.Generator) -> Camera:
    return Camera(zoom=1.7 ** (0.5 - 0.5 * np.cos(2 * math.pi * t)))


UNSEEN_CAMERA_MOVES: dict[str, Move] = {
    "camera back and forth": _back_and_forth,
    "camera round": _round,
    "camera slanted": _slanted,
    "camera turn": _turn,
    "camera pulse": _pulse,
}
DEVELOPMENT = (
    "figure eight",
    "orbit",
    "spiral",
    "hops",
    "slanted swing",
    "letter w",
    "camera back and forth",
)
TEST = tuple(name for name in (*UNSEEN_MOTIONS, *UNSEEN_CAMERA_MOVES) if name not in DEVELOPMENT)


def unseen_scene(
    motion: str,
    seed: int = 0,
    *,
    shape: str = "circle",
    colour: str = "red",
    background: str = "grey",
    frames: int = FRAMES,
) -> Scene:
    """A scene with one of UNSEEN_MOTIONS or UNSEEN_CAMERA_MOVES; its caption names no motion.

    A camera moves over an empty checked green background; shape, colour and background describe an object and
    its background when it is the object that moves.
    """
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, frames)
    if motion in UNSEEN_CAMERA_MOVES:
        ground = Ground("green", "checked", angle=0.4)
        return Scene((), ground, ground_caption(ground.name), UNSEEN_CAMERA_MOVES[motion](t, rng), frames)
    angle = 4 * math.pi * t**2 if motion == "roll" else np.zeros(1)
    thing = Thing(
        shape=shape,
        colour=colour,
        path=fit(UNSEEN_MOTIONS[motion](t, rng), 9.0),
        radius=np.full(1, 7.0),
        angle=np.asarray(angle),
        motion=motion,
    )
    return Scene((thing,), Ground(background), caption(shape, colour, background), frames=frames)


def ground_caption(background: str) -> str:
    """The caption of a background alone: `a checked green background`, `in a forest`."""
    return PLACES.get(background, f"a {background} background")
