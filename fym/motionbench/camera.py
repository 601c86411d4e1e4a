"""The motion of the camera, from tracks: one similarity transform per frame pair."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from fym.tracks import Tracks

Numbers = npt.NDArray[np.float64]

INLIER = 1.0  # pixels between a point and where the camera's motion takes it
FEWEST = 0.05  # share of the tracks visible in both frames; with fewer the camera is unknown
SURE = 0.9999  # of having drawn a clean sample

_similarity = partial(
    cv2.estimateAffinePartial2D, method=cv2.RANSAC, ransacReprojThreshold=INLIER, confidence=SURE
)


def camera_path(tracks: Tracks, lag: int = 1) -> Numbers:
    """Similarity transforms (F-lag, 2, 3) that take pixels of frame t to frame t+lag; nan where unknown.

    RANSAC over the tracks visible in both frames: the camera is what most of the picture follows.
    """
    lag = min(lag, tracks.points.shape[1] - 1)
    steps = tracks.points.shape[1] - lag
    path = np.full((steps, 2, 3), np.nan)
    for t in range(steps):
        rows = tracks.visible[:, t] & tracks.visible[:, t + lag]
        if rows.sum() < max(2, FEWEST * len(rows)):
            continue
        found, _ = _similarity(tracks.points[rows, t], tracks.points[rows, t + lag])
        if found is not None:
            path[t] = found
    return path


def moved(path: Numbers, points: npt.NDArray[np.floating]) -> Numbers:
    """Where each step of a camera path (T, 2, 3) takes points (..., T, 2)."""
    turned = np.einsum("tij,...tj->...ti", path[:, :, :2], points)
    return np.asarray(turned + path[:, :, 2])


def parts(path: Numbers) -> tuple[Numbers, Numbers]:
    """Rotation in radians (T,), clockwise on the screen, and log zoom (T,) of each step."""
    return np.arctan2(path[:, 1, 0], path[:, 0, 0]), np.log(np.hypot(path[:, 0, 0], path[:, 1, 0]))
