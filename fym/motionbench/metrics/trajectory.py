"""`trajectory_error/frechet` and `/dtw`: how far apart are the paths of points with the same start?

Source: discrete Frechet distance (Eiter and Mannila, 1994) and dynamic time warping (Sakoe and Chiba, 1978).
Unit: the distance that a frozen clip has to the reference. Range: 0 (the same) over 1 (as bad as a frozen
clip) to infinity, about 2 for opposite motion, 4 for five times the motion; lower is better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.tracks import COMPARABLE, LAG, Bools, Floats, Tracks

Combine = Callable[[Any, Any], Any]  # how a warping path's cost grows by one more pair


def frechet(reference: Tracks, other: Tracks) -> float:
    """Discrete Frechet distance: the longest leash needed, blind to where on the path time is spent."""
    return _error(reference, other, np.maximum)


def dtw(reference: Tracks, other: Tracks) -> float:
    """Dynamic time warping: the sum of distances along the best alignment of the two paths."""
    return _error(reference, other, np.add)


def _error(reference: Tracks, other: Tracks, combine: Combine) -> float:
    """Distances of the tracks' paths, summed, over those to the frozen clip; nan if too little compares.

    A path is a track's positions less that of its start frame, over the frames in which it is visible in
    both clips. Tracks that move in neither clip are left out: their jitter is no error. nan if the reference
    does not move or if the tracks left hold less than a tenth of its motion.
    """
    if reference.starts.shape != other.starts.shape:
        raise ValueError(f"different grids: {len(reference.starts)} and {len(other.starts)} tracks")
    frames = min(reference.points.shape[1], other.points.shape[1])
    common = reference.visible[:, :frames] & other.visible[:, :frames]
    ours, theirs = _from_start(reference, frames), _from_start(other, frames)
    whole = _reach(ours, reference.visible[:, :frames])
    ref_moves = whole > reference.dead_zone
    moves = ref_moves | (_reach(theirs, other.visible[:, :frames]) > reference.dead_zone)
    rows = np.flatnonzero(moves & (common.sum(axis=1) > min(LAG, frames - 1)))
    held = _reach(ours[rows], common[rows])[ref_moves[rows]].sum()
    if held <= COMPARABLE * whole[ref_moves].sum():
        return float("nan")
    ours, theirs, common = ours[rows], theirs[rows], common[rows]
    to_frozen = combine.reduce(np.where(common, np.linalg.norm(ours, axis=-1), 0), axis=1)  # type: ignore[attr-defined]
    return float(_warped(ours, theirs, common, combine).sum() / to_frozen.sum())


def _from_start(tracks: Tracks, frames: int) -> Floats:
    start = np.take_along_axis(tracks.points, tracks.starts[:, None, None], axis=1)
    return tracks.points[:, :frames] - start


def _reach(path: Floats, seen: Bools) -> Floats:
    """(N,) the furthest that a path gets from its start while seen."""
    return np.where(seen, np.linalg.norm(path, axis=-1), 0).max(axis=1)


def _warped(ours: Floats, theirs: Floats, seen: Bools, combine: Combine) -> npt.NDArray[np.float64]:
    """(N,) cost of the best monotone alignment of two paths (N, F, 2) over the frames seen (an interval).

    Frames outside the interval align among themselves at no cost and with none inside.
    """
    count, frames = seen.shape
    previous = np.full((frames + 1, count), np.inf)
    previous[0] = 0
    for s in range(frames):
        gap = np.linalg.norm(ours[:, s, None] - theirs, axis=-1).T
        both, neither = seen[:, s] & seen.T, ~seen[:, s] & ~seen.T
        cost = np.where(both, gap, np.where(neither, 0, np.inf))
        row = np.full((frames + 1, count), np.inf)
        reached = np.minimum(previous[1:], previous[:-1])
        for t in range(frames):
            row[t + 1] = combine(np.minimum(reached[t], row[t]), cost[t])
        previous = row
    return previous[frames]


def _metric(name: str, definition: str, score: Callable[[Tracks, Tracks], float]) -> Metric:
    return Metric(
        name=f"trajectory_error/{name}",
        version=1,
        definition=definition,
        unit="distance of a frozen clip",
        best=0.0,
        loss=distance(0.0),
        tolerance=0.4,
        claims=(
            "reversed zoom",
            "reversed pan",
            "5x speed",
            "frozen clip",
            "one-sided match",
            "missing object",
            "time-reversed clip",
        ),
        measure=on_tracks(score, nan="the reference does not move, or the other clip cannot be tracked"),
    )


FRECHET = _metric("frechet", "discrete Frechet distance of paths with the same start", frechet)
DTW = _metric("dtw", "dynamic time warping distance of paths with the same start", dtw)
