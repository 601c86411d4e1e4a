"""Reads colour, shape, background and track off a clip of the embedded world, without knowing its prompt.

The background of a picture row is the median of its outermost columns; the object is what differs from it.
Positions are pixels of the clip as given, (x, y), y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from fym.embedded.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZE, Ground, Scene, Thing, render

DIFFERENT = 60.0  # sum of absolute RGB differences (of 765) that makes a pixel part of the object
SMALLEST, LARGEST = 20, 700  # pixels of an object in a 48 x 48 frame


@dataclass(frozen=True)
class Reading:
    """What a clip shows. `track` is (F, 2) with NaN where no object is seen."""

    background: str
    colour: str
    shape: str
    track: np.ndarray
    present: np.ndarray  # (F,) bool: an object of a plausible size
    one_piece: np.ndarray  # (F,) bool: present, and one component holds 85 % of its pixels


def read_clip(frames: Tensor) -> Reading:
    """Read a clip (F, H, W, 3) uint8."""
    video = frames.numpy().astype(np.float32)
    count, height, width = video.shape[:3]
    scale = height * width / SIZE**2
    track = np.full((count, 2), np.nan)
    present, one_piece = np.zeros(count, bool), np.zeros(count, bool)
    paints, crops, grounds = [], [], []
    for i, picture in enumerate(video):
        edge = np.concatenate([picture[:, :3], picture[:, -3:]], 1)
        ground = np.median(edge, axis=1, keepdims=True)
        grounds.append(np.median(ground, axis=(0, 1)))
        difference = np.abs(picture - ground).sum(-1)
        mask = (difference > max(DIFFERENT, 0.45 * np.percentile(difference, 99.5))).astype(np.uint8)
        components, labels, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if components < 2:
            continue
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        area = stats[largest, cv2.CC_STAT_AREA]
        if not SMALLEST * scale <= area <= LARGEST * scale:
            continue
        present[i] = True
        one_piece[i] = area >= 0.85 * mask.sum()
        body = labels == largest
        track[i] = centroids[largest] + 0.5
        core = cv2.erode(body.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        paints.append(np.median(picture[core if core.any() else body], axis=0))
        crops.append(_normalised(body, track[i]))
    ground_colour = np.median(grounds, axis=0)
    paint = np.median(paints, axis=0) if paints else ground_colour
    shape = _nearest_shape(np.mean(crops, 0)) if crops else "none"
    return Reading(
        background=nearest_colour(ground_colour, BACKGROUNDS),
        colour=nearest_colour(paint, COLOURS) if paints else "none",
        shape=shape,
        track=track,
        present=present,
        one_piece=one_piece,
    )


def nearest_colour(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette colour nearest in CIELAB, lightness at half weight (backgrounds are shaded)."""
    names = list(palette)
    table = np.array([rgb, *(palette[n] for n in names)], np.float32)[None] / 255
    lab = cv2.cvtColor(table, cv2.COLOR_RGB2LAB)[0] * np.array([0.5, 1, 1])
    return names[int(np.square(lab[1:] - lab[0]).sum(-1).argmin())]


def _normalised(mask: np.ndarray, centre: np.ndarray, size: int = 32) -> np.ndarray:
    """The mask cut out around its centroid and scaled so that its area is a quarter of the crop."""
    side = 2 * np.sqrt(mask.sum())
    matrix = np.array([[side / size, 0, centre[0] - side / 2], [0, side / size, centre[1] - side / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(mask.astype(np.float32), matrix, (size, size), flags=flags)


def _templates() -> dict[str, list[np.ndarray]]:
    out: dict[str, list[np.ndarray]] = {}
    for shape in SHAPES:
        out[shape] = []
        for angle in np.linspace(-0.3, 0.3, 5):
            thing = Thing(shape, "white", np.full((1, 2), 24.0), np.full(1, 8.0), np.full(1, angle))
            scene = Scene((thing,), Ground("black"), frames=1)
            mask = render(scene)[0, ..., 0].numpy() > 128
            ys, xs = np.nonzero(mask)
            out[shape].append(_normalised(mask, np.array([xs.mean() + 0.5, ys.mean() + 0.5])))
    return out


_TEMPLATES = _templates()


def _nearest_shape(crop: np.ndarray) -> str:
    def distance(shape: str) -> float:
        return min(float(np.square(crop - t).sum()) for t in _TEMPLATES[shape])

    return min(SHAPES, key=distance)


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
