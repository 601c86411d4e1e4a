"""A motion without a look, and the scene that both make. Lengths are pixels of a 48 pixel frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fym.embedded.scenes import Camera, Scene, Thing
from fym.motionbench.scenes.look import Look


@dataclass(frozen=True)
class Body:
    """How one object moves: its centroid in the world, half extent and turn in every frame."""

    path: np.ndarray  # (F, 2)
    radius: np.ndarray  # (F,) or (1,); half the height of a person
    angle: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (F,) or (1,), radians, clockwise
    pose: np.ndarray | None = None  # (F, 16, 2) joints of a person around its centroid, in half heights


@dataclass(frozen=True)
class Motion:
    """All that moves in a clip of F frames."""

    bodies: tuple[Body, ...]
    camera: Camera
    frames: int


def film(motion: Motion, look: Look, *, name: str = "") -> Scene:
    """The scene with that motion and that look; each object of the look gets one body, in order."""
    things = tuple(
        Thing(shape, colour, body.path, body.radius, body.angle, motion=name, pose=body.pose)
        for (shape, colour), body in zip(look.objects, motion.bodies, strict=True)
    )
    return Scene(things, look.ground, look.prompt, motion.camera, motion.frames)
