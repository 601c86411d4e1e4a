"""`camera_error`: does the camera move as in the reference?

Source: fym; a similarity transform per frame pair by RANSAC (Fischler and Bolles, 1981) over the tracks.
Unit: the reference camera's own motion. Range: 0 (the same) over 1 (as bad as a camera at rest) to infinity,
2 for the opposite move, 4 for five times the move; lower is better.
"""

from __future__ import annotations

import math

import numpy as np

from fym.camera import camera_path, moved, parts
from fym.motionbench.metrics.base import Measured, Metric, distance
from fym.motionbench.pair import Pair
from fym.tracks import LAG, Tracks


def camera_error(reference: Tracks, other: Tracks) -> tuple[float, dict[str, float]]:
    """The error, and the mean absolute differences per frame it is made of.

    For each frame pair, the distance between where the two cameras take a pixel, as root mean square over the
    picture; summed over the frame pairs in which both are known, and divided by the same sum for the
    reference's camera against one at rest. That sum is at least a dead zone's worth of motion, so a camera at
    rest is not compared with its own jitter. nan if no frame pair is known. The parts: `rotation` in
    degrees, `log_zoom`, `shift` of the picture's centre in pixels.
    """
    ours, theirs = camera_path(reference), camera_path(other)
    steps = min(len(ours), len(theirs))
    ours, theirs = ours[:steps], theirs[:steps]
    known = np.isfinite(ours).all(axis=(1, 2)) & np.isfinite(theirs).all(axis=(1, 2))
    if not known.any():
        return math.nan, {}
    ours, theirs = ours[known], theirs[known]
    height, width = reference.size
    x, y = np.meshgrid(np.linspace(0, width - 1, 5), np.linspace(0, height - 1, 5))
    pixels = np.repeat(np.stack([x, y], -1).reshape(-1, 1, 2), len(ours), axis=1)
    here, there = moved(ours, pixels), moved(theirs, pixels)
    gap = np.sqrt(np.square(there - here).sum(-1).mean(axis=0)).sum()
    way = np.sqrt(np.square(here - pixels).sum(-1).mean(axis=0)).sum()
    turns, zooms = (np.abs(a - b).mean() for a, b in zip(parts(theirs), parts(ours), strict=True))
    centre = len(pixels) // 2
    details = {
        "rotation": float(np.degrees(turns)),
        "log_zoom": float(zooms),
        "shift": float(np.linalg.norm(there[centre] - here[centre], axis=-1).mean()),
    }
    return float(gap / max(way, reference.dead_zone / LAG * len(ours))), details


def _measure(pair: Pair) -> Measured:
    value, details = camera_error(*pair.tracks)
    note = "too few points are visible to tell the camera's motion" if math.isnan(value) else ""
    return Measured(value, pair.track_backend, note, details)


METRIC = Metric(
    name="camera_error",
    version=1,
    definition="distance between the cameras' motions over that of the reference's",
    unit="motion of the reference's camera",
    best=0.0,
    loss=distance(0.0),
    tolerance=0.5,
    claims=("reversed zoom", "reversed pan", "5x speed"),
    measure=_measure,
)
