"""Rendered scenes with known motion: the world of the embedded model, and ground truth for its checks."""

from __future__ import annotations

from fym.embedded.scenes.backgrounds import PHOTOS, Ground
from fym.embedded.scenes.camera import CAMERA_MOVES, SIZE, Camera
from fym.embedded.scenes.captions import caption
from fym.embedded.scenes.colours import BACKGROUNDS, COLOURS, TEXTURES
from fym.embedded.scenes.motions import FPS, FRAMES, MOTIONS
from fym.embedded.scenes.sampling import KINDS, SIZES, sample_scene
from fym.embedded.scenes.scene import Scene, Thing, at_frames, render, render_with_masks
from fym.embedded.scenes.shapes import SHAPES
from fym.embedded.scenes.unseen import (
    DEVELOPMENT,
    TEST,
    UNSEEN_CAMERA_MOVES,
    UNSEEN_MOTIONS,
    ground_caption,
    unseen_scene,
)

__all__ = [
    "BACKGROUNDS",
    "CAMERA_MOVES",
    "COLOURS",
    "DEVELOPMENT",
    "FPS",
    "FRAMES",
    "KINDS",
    "MOTIONS",
    "PHOTOS",
    "SHAPES",
    "SIZE",
    "SIZES",
    "TEST",
    "TEXTURES",
    "UNSEEN_CAMERA_MOVES",
    "UNSEEN_MOTIONS",
    "Camera",
    "Ground",
    "Scene",
    "Thing",
    "at_frames",
    "caption",
    "ground_caption",
    "render",
    "render_with_masks",
    "sample_scene",
    "unseen_scene",
]
