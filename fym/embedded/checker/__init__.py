"""Reads objects, background and camera off a clip of the embedded world, without knowing its prompt.

Positions are pixels of the clip as given, (x, y), y down. `python -m fym.embedded.checker` states its errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fym.embedded.checker.camera import camera_cosine, camera_steps, true_steps
from fym.embedded.checker.ground import name_ground, same_ground
from fym.embedded.checker.objects import colour_of, link, pieces_of, shape_of
from fym.embedded.checker.palette import nearest_colour
from fym.embedded.checker.segment import segment

__all__ = [
    "Reading",
    "camera_cosine",
    "nearest_colour",
    "read_clip",
    "same_ground",
    "true_steps",
    "velocity_cosine",
]


@dataclass(frozen=True)
class Reading:
    """What a clip shows, objects largest first. Tracks hold NaN where an object is not seen."""

    background: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    tracks: np.ndarray  # (N, F, 2)
    present: np.ndarray  # (F,) bool: an object of a plausible size
    one_piece: np.ndarray  # (F,) bool: one piece of each colour holds 85 % of the foreground
    camera: np.ndarray  # (K, 4, 2), see `camera_steps`
    flicker: float  # mean absolute second difference in time of the background, half of it, of 255

    @property
    def colour(self) -> str:
        """Of the largest object; "none" without one."""
        return self.colours[0] if self.colours else "none"

    @property
    def shape(self) -> str:
        return self.shapes[0] if self.shapes else "none"

    @property
    def track(self) -> np.ndarray:
        """(F, 2) of the largest object."""
        return self.tracks[0] if len(self.tracks) else np.full((len(self.present), 2), np.nan)


def read_clip(frames: Tensor) -> Reading:
    """Read a clip (F, H, W, 3) uint8."""
    video = frames.numpy().astype(np.float32)
    parts = segment(video)
    found = pieces_of(video, parts)
    tracks = link(found, video.shape[1])
    count = len(video)
    colours = tuple(colour_of(video, t) for t in tracks)
    bodies, whole = np.zeros(video.shape[:3], bool), np.zeros(count)
    for n, track in enumerate(tracks):
        for i, piece in track.pieces.items():
            bodies[i] |= piece.body
            if colours[n] not in colours[:n]:  # a second one of a colour is a torn-off part of the first
                whole[i] += piece.area
    present = whole > 0
    return Reading(
        background=name_ground(video, parts),
        colours=colours,
        shapes=tuple(shape_of(video, t, parts) for t in tracks),
        tracks=np.array([t.path(count) for t in tracks]).reshape(-1, count, 2),
        present=present,
        one_piece=present & (whole >= 0.85 * parts.mask.sum((1, 2))),
        camera=camera_steps(video, bodies),
        flicker=_flicker(video, parts.mask),
    )


def _flicker(video: np.ndarray, mask: np.ndarray) -> float:
    if len(video) < 3:
        return 0.0
    change = np.abs(video[2:] - 2 * video[1:-1] + video[:-2]).mean(-1) / 2
    free = ~(mask[2:] | mask[1:-1] | mask[:-2])
    return float(change[free].mean()) if free.any() else 0.0


def velocity_cosine(track: np.ndarray, truth: np.ndarray, *, still: float = 0.05) -> float:
    """Mean over frames of the cosine between the velocities of two tracks (F, 2), in [-1, 1].

    Frame pairs in which the truth moves less than `still` pixels are left out; a pair in which the object
    is not seen, or does not move, counts 0.
    """
    v, w = np.diff(track, axis=0), np.diff(truth, axis=0)
    moving = np.linalg.norm(w, axis=1) > still
    norm = np.linalg.norm(v, axis=1) * np.linalg.norm(w, axis=1)
    cosine = np.where(np.isfinite(norm) & (norm > 1e-9), (v * w).sum(1) / np.maximum(norm, 1e-9), 0.0)
    return float(np.nan_to_num(cosine)[moving].mean()) if moving.any() else 0.0
