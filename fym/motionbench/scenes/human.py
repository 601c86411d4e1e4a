"""Motions of a person, cut and joined from real motion capture (see `fym.embedded.scenes.figure`).

Six recordings were never shown to the embedded model; the others are changed into motions that were not:
joined, turned, reversed or slowed down. Joints are metres, x forward, y up, z to the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fym.embedded.scenes import SIZE, Camera, figure
from fym.embedded.scenes.motions import FRAMES
from fym.motionbench.scenes.motion import Body, Motion

SEAM = 4  # frames over which a joined recording takes over from the pose before it
TALLEST, MARGIN = 15.0, 2.0  # half height of a person, and what stays free on every side, pixels
THICKNESS = 0.17  # of the thickest limb, the head, in half heights
RIGHT, LEFT = figure.JOINTS.index("right_hip"), figure.JOINTS.index("left_hip")


@dataclass(frozen=True)
class Take:
    """`frames` frames of a recording from frame `first` on, at `speed` (negative: backwards)."""

    recording: str
    frames: int
    first: float = 0.0
    speed: float = 1.0

    def joints(self) -> np.ndarray:
        """(frames, 16, 3); gaits go on for ever, other recordings hold their ends."""
        whole = figure.recordings()[self.recording]
        at = self.first + self.speed * np.arange(self.frames)
        if self.recording not in figure.TRAVELLING:
            return _between(whole, np.clip(at, 0, len(whole) - 1))
        period = len(whole) - 1
        travel = (whole[-1, 0] - whole[0, 0]) * [1, 0, 1]
        return _between(whole, at % period) + (at // period)[:, None, None] * travel


def _between(whole: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Frames at fractional positions."""
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(whole) - 1)
    share = (at - low)[:, None, None]
    return (1 - share) * whole[low] + share * whole[high]


def joined(*takes: Take) -> np.ndarray:
    """(F, 16, 3): one take after the other; each starts where and looks where the last one ended."""
    out = takes[0].joints()
    for take in takes[1:]:
        following = _turned(take.joints(), _heading(out[-1]) - _heading(take.joints()[0]))
        step = (out[-1, 0] - out[-2, 0]) * [1, 0, 1]
        following = following + (out[-1, 0] - following[0, 0]) * [1, 0, 1] + step
        share = np.linspace(0, 1, SEAM + 2)[1:-1, None, None]
        held = out[-1] - out[-1, :1] + following[:SEAM, :1] * [1, 0, 1] + out[-1, :1] * [0, 1, 0]
        following[:SEAM] = (1 - share) * held + share * following[:SEAM]
        out = np.concatenate([out, following])
    return out


def _heading(joints: np.ndarray) -> float:
    """Direction in which one pose (16, 3) looks, radians about the vertical; 0 is along x."""
    across = joints[RIGHT] - joints[LEFT]
    return math.atan2(-across[0], across[2])


def _turned(joints: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Turned about the vertical by an angle, one or (F,), about the world's origin."""
    a = np.broadcast_to(np.asarray(angle, float), len(joints))[:, None]
    c, s = np.cos(a), np.sin(a)
    x, z = joints[..., 0], joints[..., 2]
    return np.stack([c * x - s * z, joints[..., 1], s * x + c * z], -1)


def steered(joints: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """The same steps along a way that bends: turned by `heading` (F,) radians in every frame."""
    flat = joints[:, :1] * [1, 0, 1]
    steps = np.diff(flat, axis=0, prepend=flat[:1])
    return _turned(joints - flat, heading) + np.cumsum(_turned(steps, heading), axis=0)


def _about_turn(first: int, last: int) -> np.ndarray:
    """Headings (F,) that go from 0 to half a turn between two frames."""
    return math.pi * np.clip((np.arange(FRAMES) - first) / (last - first), 0, 1)


def _walk_turn_walk() -> np.ndarray:
    return steered(Take("walk", FRAMES).joints(), _about_turn(20, 30))


def _jump_there_and_back() -> np.ndarray:
    there = joined(Take("jump", 25, 2), Take("jump", FRAMES - 25, 2))
    return steered(there, _about_turn(22, 28))


def _run_in_a_circle() -> np.ndarray:
    return steered(Take("run", FRAMES, speed=0.8).joints(), np.linspace(0, 2 * math.pi, FRAMES))


# Name -> the joints (F, 16, 3) and the direction they are seen from, radians; 0 sees x go to the right.
HUMAN: dict[str, tuple[Callable[[], np.ndarray], float]] = {
    "cartwheel": (lambda: joined(Take("cartwheel", FRAMES)), -math.pi / 2),
    "backflip": (lambda: Take("backflip", FRAMES, speed=0.6).joints(), 0.2),
    "tumble": (lambda: Take("roll", FRAMES, speed=0.7).joints(), 0.0),
    "spin kick": (lambda: joined(Take("spinkick", 21), Take("spinkick", FRAMES - 21)), 0.3),
    "get up from the back": (lambda: joined(Take("getup_faceup", FRAMES, speed=1.25)), 0.0),
    "spin": (lambda: joined(Take("spin", FRAMES, speed=1.45)), -math.pi / 2),
    "lie down": (lambda: joined(Take("getup_facedown", FRAMES, FRAMES - 1, -1.0)), 0.0),
    "walk, turn and walk": (_walk_turn_walk, 0.2),
    "moonwalk": (lambda: joined(Take("walk", FRAMES, 0, -1.0)), 0.2),
    "jump there and back": (_jump_there_and_back, 0.2),
    "crawl and get up": (lambda: joined(Take("crawl", 18), Take("getup_facedown", 31, 0, 1.5)), 0.0),
    "punch and kick": (lambda: joined(Take("punch", 26), Take("kick", FRAMES - 26)), 0.3),
    "run and cartwheel": (lambda: joined(Take("run", 10), Take("cartwheel", 39, 4)), 0.0),
    "run in a circle": (_run_in_a_circle, 0.2),
    "slow dance backwards": (lambda: joined(Take("dance_a", FRAMES, 25, -0.5)), 0.3),
    "kick and back": (lambda: joined(Take("kick", 25), Take("kick", FRAMES - 25, 24, -1.0)), 0.3),
}
NAMES = tuple(HUMAN)


def human_motion(name: str, seed: int) -> Motion:
    """The motion of that name of one person, as large as the frame allows."""
    make, view = HUMAN[name]
    joints = make()
    x = math.cos(view) * joints[..., 0] + math.sin(view) * joints[..., 2]
    pose = np.stack([x, -joints[..., 1]], -1) / (figure.HEIGHT / 2)
    centre = figure.centre_of_area(pose)
    return Motion((_placed(pose - centre[:, None], centre),), Camera(), FRAMES)


def _placed(pose: np.ndarray, centre: np.ndarray) -> Body:
    """The person (F, 16, 2) with its centre (F, 2), in half heights, in the frame with all its limbs.

    It is made as large as its rise and fall allow; a longer way than the frame is wide is shortened.
    """
    low, high = pose.min(1) - THICKNESS, pose.max(1) + THICKNESS  # (F, 2) of the limbs
    room = SIZE - 2 * MARGIN
    height = min(TALLEST, room / _span(centre, low, high)[1])
    way = centre * height
    while _span(way, low * height, high * height)[0] > room:
        way = way * [0.98, 1.0]
    top = (way + low * height).min(0)
    bottom = (way + high * height).max(0)
    path = way + SIZE / 2 - (top + bottom) / 2
    return Body(path, np.full(1, height), pose=pose)


def _span(way: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(2,) width and height of all that is ever covered."""
    return (way + high).max(0) - (way + low).min(0)
