"""`object_residual`: do the objects move as in the reference, the camera's motion taken away?

Source: fym; the camera is that of `camera_error`. Unit: the reference's motion of objects. Range: 0 (the
same) over 1 (as bad as objects at rest) to infinity, 2 for opposite motion; lower is better.
"""

from __future__ import annotations

import numpy as np

from fym.camera import camera_path, moved
from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.tracks import COMPARABLE, LAG, Bools, Floats, Tracks

INEXACT = 0.25  # of the camera's displacement: what it may leave behind at points of the ground
SMALLEST = 0.1  # share of all motion that objects must have; tracking errors under a zoom have less


def object_residual(reference: Tracks, other: Tracks) -> float:
    """Difference of the residual motions of points with the same start, over the reference's.

    A residual is a track's displacement over `fym.tracks.LAG` frames less what the camera does to its place,
    0 below the dead zone and a quarter of the camera's displacement (its transform and the tracks are not
    exact). The lengths of the differences are summed over the steps in which the point is visible in both
    clips and divided by the sum of the reference's residuals there. nan if objects have less than a tenth
    of all motion in the reference, or if less than a tenth of theirs can be compared.
    """
    if reference.starts.shape != other.starts.shape:
        raise ValueError(f"different grids: {len(reference.starts)} and {len(other.starts)} tracks")
    ours, ours_seen, ours_all = _residual(reference)
    theirs, theirs_seen, _ = _residual(other)
    steps = min(ours.shape[1], theirs.shape[1])
    way = np.linalg.norm(ours[:, :steps], axis=-1) * ours_seen[:, :steps]
    if way.sum() <= SMALLEST * ours_all:
        return float("nan")
    both = ours_seen[:, :steps] & theirs_seen[:, :steps]
    compared = (way * both).sum()
    if compared <= COMPARABLE * way.sum():
        return float("nan")
    return float((np.linalg.norm(theirs[:, :steps] - ours[:, :steps], axis=-1) * both).sum() / compared)


def _residual(tracks: Tracks) -> tuple[Floats, Bools, float]:
    """Displacements less the camera's (N, steps, 2), zero where small; where they are known; and the sum of
    the lengths of all displacements.
    """
    step, seen = tracks.displacements()
    path = camera_path(tracks, LAG)
    begin = tracks.points[:, : step.shape[1]]
    carried = moved(path, begin) - begin
    rest = step - carried
    known = seen & np.isfinite(path).all(axis=(1, 2))
    least = tracks.dead_zone + INEXACT * np.linalg.norm(carried, axis=-1)
    moves = known & (np.linalg.norm(rest, axis=-1) > least)
    whole = float(np.linalg.norm(step, axis=-1)[known].sum())
    return np.where(moves[..., None], rest, 0).astype(np.float32), known, whole


METRIC = Metric(
    name="object_residual",
    version=1,
    definition="difference of motions of points with the same start, camera removed, over the reference's",
    unit="motion of the reference's objects",
    best=0.0,
    loss=distance(0.0),
    tolerance=0.5,
    claims=("frozen clip", "one-sided match", "time-reversed clip"),
    measure=on_tracks(object_residual, nan="no object moves in the reference, or it cannot be followed"),
)
