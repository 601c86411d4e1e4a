"""The motion of the camera, from tracks: similarity transforms between frames of a clip.

Shapes: F frames, H x W pixels. A position is (x, y) in pixels, pixel centres at integers.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from fym.tracks import LAG, Bytes, Tracks

Numbers = npt.NDArray[np.float64]

INLIER = 1.0  # pixels between a point and where the camera's motion takes it
FEWEST = 0.05  # share of the tracks visible in both frames; with fewer the camera is unknown
SURE = 0.9999  # of having drawn a clean sample
STRIDE = 6  # frames from mark to mark of a course

_similarity = partial(
    cv2.estimateAffinePartial2D, method=cv2.RANSAC, ransacReprojThreshold=INLIER, confidence=SURE
)


def camera_path(tracks: Tracks, lag: int = 1) -> Numbers:
    """Similarity transforms (F-lag, 2, 3) that take pixels of frame t to frame t+lag; nan where unknown.

    RANSAC over the tracks visible in both frames: the camera is what most of the picture follows.
    """
    lag = min(lag, tracks.points.shape[1] - 1)
    return np.stack([_step(tracks, t, t + lag) for t in range(tracks.points.shape[1] - lag)])


def _step(tracks: Tracks, start: int, end: int) -> Numbers:
    """(2, 3), from one frame to another."""
    rows = tracks.visible[:, start] & tracks.visible[:, end]
    if rows.sum() < max(2, FEWEST * len(rows)):
        return np.full((2, 3), np.nan)
    found, _ = _similarity(tracks.points[rows, start], tracks.points[rows, end])
    return np.full((2, 3), np.nan) if found is None else np.asarray(found, np.float64)


def moved(path: Numbers, points: npt.NDArray[np.floating]) -> Numbers:
    """Where each step of a camera path (T, 2, 3) takes points (..., T, 2)."""
    turned = np.einsum("tij,...tj->...ti", path[:, :, :2], points)
    return np.asarray(turned + path[:, :, 2])


def parts(path: Numbers) -> tuple[Numbers, Numbers]:
    """Rotation in radians (T,), clockwise on the screen, and log zoom (T,) of each step."""
    return np.arctan2(path[:, 1, 0], path[:, 0, 0]), np.log(np.hypot(path[:, 0, 0], path[:, 1, 0]))


def moving_time(tracks: Tracks) -> float:
    """The share of the clip's time, 0 to 1, in which the camera moves: the corners of the picture, in the
    mean, by more than the dead zone."""
    path = camera_path(tracks, LAG)
    path = path[~np.isnan(path).any((1, 2))]
    if not len(path):
        return 0.0
    rest = np.eye(3)[None, :2]
    ways = np.linalg.norm(_corners(path, tracks.size) - _corners(rest, tracks.size), axis=-1)
    return float(np.mean(ways.mean(0) > tracks.dead_zone))


def course(tracks: Tracks) -> Numbers:
    """Similarity transforms (F, 3, 3) that take pixels of the first frame to every frame.

    Over `STRIDE` frames points move far enough to be told from jitter, which adds up from step to step; so
    the frames between are placed from the marks before and after them alone. At rest where a step is unknown.
    """
    frames = tracks.points.shape[1]

    def step(start: int, end: int) -> Numbers:
        found = _step(tracks, start, end)
        return np.vstack([found, [0, 0, 1]]) if np.isfinite(found).all() else np.eye(3)

    way = [np.eye(3)]
    for start, end in pairwise([*range(0, frames - 1, STRIDE), frames - 1]):
        before, after = way[-1], step(start, end) @ way[-1]
        for t in range(start + 1, end):
            share = (t - start) / (end - start)
            back = np.linalg.inv(step(t, end)) @ after
            way.append((1 - share) * step(start, t) @ before + share * back)
        way.append(after)
    return np.stack(way)


def turned(course: Numbers) -> float:
    """By how much a camera on that course (F, 3, 3) turns about its axis: the range of its angle, radians."""
    return float(np.ptp(np.unwrap(parts(course)[0])))


def seen_from(still: Bytes, course: Numbers) -> Bytes:
    """What a camera on that course (F, 3, 3) sees of a still (H, W, 3): (F, H, W, 3), mirrored at its edges.

    The still is the view in the frame from which the others are least far away.
    """
    height, width = still.shape[:2]
    corners = _corners(course[:, :2], (height, width))
    apart = np.linalg.norm(corners[:, :, None] - corners[:, None], axis=-1)  # (4, F, F)
    back = np.linalg.inv(course[apart.sum((0, 2)).argmin()])
    return np.stack(
        [
            cv2.warpAffine(still, (place @ back)[:2], (width, height), borderMode=cv2.BORDER_REFLECT_101)
            for place in course
        ]
    )


def _corners(path: Numbers, size: tuple[int, int]) -> Numbers:
    """(4, T, 2): where each step of a camera path (T, 2, 3) takes the corners of a picture (H, W)."""
    height, width = size
    corners = np.array([(x, y) for x in (0.0, width - 1.0) for y in (0.0, height - 1.0)])
    return moved(path, np.broadcast_to(corners[:, None], (4, len(path), 2)))
