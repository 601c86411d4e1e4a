"""Rendered scenes with known motion: the world of the embedded model, and ground truth for its checks."""

from __future__ import annotations

from fym.embedded.scenes.backgrounds import PHOTOS, Ground
from fym.embedded.scenes.camera import CAMERA_MOVES, SIZE, Camera
from fym.embedded.scenes.captions import caption
from fym.embedded.scenes.colours import BACKGROUNDS, COLOURS, TEXTURES
from fym.embedded.scenes.motions import FPS, FRAMES, MOTIONS, UNSEEN_MOTIONS
from fym.embedded.scenes.sampling import KINDS, SIZES, sample_scene, unseen_scene
from fym.embedded.scenes.scene import Scene, Thing, at_frames, render, render_with_masks
from fym.embedded.scenes.shapes import SHAPES

__all__ = [
    "BACKGROUNDS",
    "CAMERA_MOVES",
    "COLOURS",
    "FPS",
    "FRAMES",
    "KINDS",
    "MOTIONS",
    "PHOTOS",
    "SHAPES",
    "SIZE",
    "SIZES",
    "TEXTURES",
    "UNSEEN_MOTIONS",
    "Camera",
    "Ground",
    "Scene",
    "Thing",
    "at_frames",
    "caption",
    "render",
    "render_with_masks",
    "sample_scene",
    "unseen_scene",
]
