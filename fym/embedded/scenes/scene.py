"""A scene, and its picture with exact ground truth: tracks, masks, camera.

Objects are drawn in order, later ones in front. Lengths are pixels of a 48 pixel frame; positions are
(x, y), y down; a track is exact to a fraction of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fym.embedded.scenes import backgrounds, figure, shapes
from fym.embedded.scenes.backgrounds import Ground
from fym.embedded.scenes.camera import SIZE, Camera
from fym.embedded.scenes.colours import COLOURS, partner, pattern


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and its place, size and turn in the world in every frame."""

    shape: str  # one of SHAPES, or person
    colour: str
    path: np.ndarray  # (F, 2) centroid
    radius: np.ndarray  # (F,) or (1,) half extent; half the height of a person
    angle: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (F,) or (1,), radians, clockwise
    texture: str = "plain"
    tint: float = 1.0  # brightness
    motion: str = ""
    pose: np.ndarray | None = None  # (F, 16, 2) joints of a person around its centroid, in half heights


@dataclass(frozen=True)
class Scene:
    """One clip: objects on a background, seen by a camera, and its caption."""

    things: tuple[Thing, ...]
    ground: Ground
    prompt: str = ""
    camera: Camera = field(default_factory=Camera)
    frames: int = 49

    @property
    def tracks(self) -> np.ndarray:
        """(N, F, 2) centroids of the objects in the frame, occlusion and borders left aside."""
        shape = (self.frames, 2)
        seen = [self.camera.to_frame(np.broadcast_to(t.path, shape)) for t in self.things]
        return np.stack(seen) if seen else np.zeros((0, *shape))

    @property
    def track(self) -> np.ndarray:
        """(F, 2) centroid of the first object."""
        return self.tracks[0]

    @property
    def shape(self) -> str:
        return self.things[0].shape if self.things else ""

    @property
    def colour(self) -> str:
        return self.things[0].colour if self.things else ""

    @property
    def motion(self) -> str:
        return self.things[0].motion if self.things else ""

    @property
    def background(self) -> str:
        return self.ground.name


def at_frames(scene: Scene, index: list[int]) -> Scene:
    """The scene of some frames only, in the given order (repeats are allowed)."""

    def pick(values: np.ndarray) -> np.ndarray:
        return values if len(values) == 1 else values[index]

    things = tuple(
        replace(
            t,
            path=pick(t.path),
            radius=pick(t.radius),
            angle=pick(t.angle),
            pose=None if t.pose is None else t.pose[index],
        )
        for t in scene.things
    )
    view = scene.camera
    camera = Camera(pick(view.centre), pick(view.zoom), pick(view.roll))
    return replace(scene, things=things, camera=camera, frames=len(index))


def _frames_of(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[:, None, None]


def _local(thing: Thing, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """World coordinates -> the object's own, unturned, still in pixels."""
    dx, dy = x - _frames_of(thing.path[:, 0]), y - _frames_of(thing.path[:, 1])
    c, s = np.cos(thing.angle), np.sin(thing.angle)
    return _frames_of(c) * dx + _frames_of(s) * dy, _frames_of(c) * dy - _frames_of(s) * dx


def _cover(thing: Thing, x: Tensor, y: Tensor, pixel: Tensor) -> Tensor:
    """(F, H, W) share of each pixel covered; `pixel` is its size in world pixels."""
    radius = _frames_of(thing.radius)
    if thing.pose is None:
        signed = shapes.distance(thing.shape, x, y, radius)
    else:
        frames = len(thing.pose)
        x, y = (v.expand(frames, *v.shape[1:]) for v in (x, y))
        signed = figure.distance(x, y, torch.as_tensor(thing.pose, dtype=torch.float32), radius)
    return (0.5 - signed / pixel).clamp(0, 1)


def render_with_masks(scene: Scene, *, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Draw a scene: frames (F, size, size, 3) uint8 and visible masks (N, F, size, size) in [0, 1]."""
    x, y = scene.camera.to_world(size)
    pixel = SIZE / size / _frames_of(scene.camera.zoom)
    picture = backgrounds.paint(scene.ground, x, y)
    masks: list[Tensor] = []
    for thing in scene.things:
        u, v = _local(thing, x, y)
        cover = _cover(thing, u, v, pixel).expand(scene.frames, size, size)
        first = torch.tensor(COLOURS[thing.colour], dtype=torch.float32)
        second = torch.tensor(partner(COLOURS[thing.colour]), dtype=torch.float32)
        share = pattern(thing.texture, u, v, 0.95 * _frames_of(thing.radius))[..., None]
        paint = (first + share * (second - first)) * thing.tint
        picture = picture + cover[..., None] * (paint - picture)
        masks = [m * (1 - cover) for m in masks] + [cover]
    frames = picture.clamp(0, 255).round().to(torch.uint8).expand(scene.frames, size, size, 3).contiguous()
    return frames, torch.stack(masks) if masks else torch.zeros(0, scene.frames, size, size)


def render(scene: Scene, *, size: int = SIZE) -> Tensor:
    """Draw a scene: (F, size, size, 3) uint8; lengths scale with size / 48."""
    return render_with_masks(scene, size=size)[0]
