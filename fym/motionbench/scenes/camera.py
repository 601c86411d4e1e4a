"""Moves of the camera, some past objects at several depths. Lengths are pixels of a 48 pixel frame.

The ground lies at depth 1. What is nearer moves and grows faster in the picture, by the ratio of the depths;
such objects get the path in the world that looks so through the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fym.embedded.scenes import SIZE, UNSEEN_CAMERA_MOVES, Camera
from fym.embedded.scenes.motions import FRAMES
from fym.motionbench.scenes.motion import Body, Motion

MIDDLE = SIZE / 2
Times = np.ndarray  # (F,) from 0 to 1


def ease(t: Times) -> Times:
    """From rest to rest, 0 to 1; held outside."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _shifted(x: Times, y: Times) -> Camera:
    return Camera(centre=MIDDLE + np.stack([x, y], 1))


def _pan_with_a_stop(t: Times) -> Camera:
    return _shifted(13 * (ease(t / 0.35) + ease((t - 0.65) / 0.35)) - 13, 0 * t)


def _tilt_back_and_forth(t: Times) -> Camera:
    return _shifted(0 * t, -10 * np.sin(2 * math.pi * t))


def _corner(t: Times) -> Camera:
    return _shifted(18 * ease(2 * t) - 9, 16 * ease(2 * t - 1) - 8)


def _whip_pan(t: Times) -> Camera:
    """Nearly all of the way in a third of the time."""
    return _shifted(6 * t + 14 * ease((t - 0.32) / 0.36) - 10, 0 * t)


def _figure_eight(t: Times) -> Camera:
    return _shifted(8 * np.sin(2 * math.pi * t), 4 * np.sin(4 * math.pi * t))


def _roll_both_ways(t: Times) -> Camera:
    return Camera(roll=0.45 * np.sin(2 * math.pi * t))


def _zoom_and_pan(t: Times) -> Camera:
    shift = np.stack([10 - 20 * t, 0 * t], 1)
    return Camera(centre=MIDDLE + shift, zoom=1.8 ** (t - 0.3))


def _spiral_in(t: Times) -> Camera:
    return Camera(zoom=1.9 ** (t - 0.4), roll=1.1 * (t - 0.5))


def _handheld_walk(t: Times) -> Camera:
    """Forward, with four steps up and down and two sways to the side."""
    sway, bob = 2.5 * np.sin(4 * math.pi * t), 2.5 * np.abs(np.sin(4 * math.pi * t))
    return Camera(centre=MIDDLE + np.stack([sway, -bob], 1), zoom=1.5 ** (t - 0.5))


def _crane(t: Times) -> Camera:
    """Up from the ground, then out."""
    shift = np.stack([0 * t, 9 - 18 * ease(1.6 * t)], 1)
    return Camera(centre=MIDDLE + shift, zoom=1.7 ** (0.6 - ease(1.6 * t - 0.6)))


MOVES: dict[str, Callable[[Times], Camera]] = {
    "pan with a stop": _pan_with_a_stop,
    "tilt back and forth": _tilt_back_and_forth,
    "corner": _corner,
    "whip pan": _whip_pan,
    "figure eight": _figure_eight,
    "roll both ways": _roll_both_ways,
    "zoom and pan": _zoom_and_pan,
    "spiral in": _spiral_in,
    "handheld walk": _handheld_walk,
    "crane": _crane,
}


# --------------------------------------------------------------------------- objects at other depths
def body_seen(camera: Camera, place: np.ndarray, radius: np.ndarray) -> Body:
    """The object that a camera sees at `place` (F, 2) with half extent `radius` (F,), both in the frame."""
    frames = len(place)
    zoom, roll = np.broadcast_to(camera.zoom, frames), np.broadcast_to(camera.roll, frames)
    x, y = ((place - MIDDLE) / zoom[:, None]).T
    c, s = np.cos(roll), np.sin(roll)
    world = np.stack([c * x - s * y, s * x + c * y], 1) + camera.centre
    return Body(world, radius / zoom, roll + np.zeros(frames))


def _trucked(t: Times, shift: np.ndarray, depths: dict[tuple[float, float], float]) -> Motion:
    """A camera moved by `shift` (F, 2), past objects of depths above 0 that it would see there unmoved."""
    camera = Camera(centre=MIDDLE + shift)
    seen = [(np.array(place) - shift / depth, 6.5 / depth**0.5) for place, depth in depths.items()]
    return Motion(tuple(body_seen(camera, p, np.full(len(t), r)) for p, r in seen), camera, len(t))


def _truck_past(t: Times) -> Motion:
    """To the right and half of the way back; far and near things go by at different speeds."""
    shift = np.stack([18 * ease(1.5 * t) - 9 * ease(3 * t - 2) - 9, 0 * t], 1)
    return _trucked(t, shift, {(24.0, 14.0): 2.0, (24.0, 33.0): 0.75})


def _arc(t: Times) -> Motion:
    """Around a still thing: the ground behind it goes one way, what is before it the other."""
    shift = np.stack([22 * (ease(t) - 0.5), -4 * np.sin(math.pi * t)], 1)
    camera = Camera(centre=MIDDLE + shift)
    still = np.full((len(t), 2), (MIDDLE, MIDDLE - 6))
    front = np.array([MIDDLE, MIDDLE + 12]) + 0.6 * shift
    bodies = (body_seen(camera, p, np.full(len(t), 6.5)) for p in (still, front))
    return Motion(tuple(bodies), camera, len(t))


def _push_in(t: Times) -> Motion:
    """Forward, stop, and back: a near and a far thing grow at different rates."""
    forward = 0.26 * (ease(t / 0.5) - 0.6 * ease((t - 0.6) / 0.4))
    camera = Camera(zoom=1 / (1 - forward))
    bodies = []
    for (x, y), depth in {(17.0, 17.0): 1.5, (30.0, 30.0): 0.75}.items():
        growth = depth / (depth - forward)
        place = MIDDLE + (np.array([x, y]) - MIDDLE) * growth[:, None]
        bodies.append(body_seen(camera, place, 5.0 * growth))
    return Motion(tuple(bodies), camera, len(t))


def _dolly_zoom(t: Times) -> Motion:
    """The ground grows and shrinks behind a thing that keeps its size."""
    camera = Camera(zoom=1.8 ** np.sin(math.pi * t))
    still = np.full((len(t), 2), MIDDLE)
    return Motion((body_seen(camera, still, np.full(len(t), 7.5)),), camera, len(t))


PARALLAX: dict[str, Callable[[Times], Motion]] = {
    "truck past": _truck_past,
    "arc": _arc,
    "push in": _push_in,
    "dolly zoom": _dolly_zoom,
}

NAMES = (*(name.removeprefix("camera ") for name in UNSEEN_CAMERA_MOVES), *MOVES, *PARALLAX)
OBJECTS = {**dict.fromkeys(NAMES, 0), "truck past": 2, "arc": 2, "push in": 2, "dolly zoom": 1}


def camera_motion(name: str, seed: int) -> Motion:
    """The move of that name."""
    t = np.linspace(0, 1, FRAMES)
    if name in PARALLAX:
        return PARALLAX[name](t)
    if name in MOVES:
        return Motion((), MOVES[name](t), FRAMES)
    return Motion((), UNSEEN_CAMERA_MOVES[f"camera {name}"](t, np.random.default_rng(seed)), FRAMES)
