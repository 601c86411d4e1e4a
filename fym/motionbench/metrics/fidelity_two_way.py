"""`motion_fidelity/two_way`: is every motion of one clip found in the other, in both directions?

Source: the paper form of motion fidelity (Yatim et al., "Space-Time Diffusion Features for Zero-Shot
Text-Driven Motion Transfer", 2024), which matches in both directions, with what its published code lacks:
still points and lost points have a meaning, and nothing is subtracted. Unit: cosine. Range: -1 to 1, higher
is better. It matches without regard to place, so it cannot see a reversed zoom: read it beside
`motion_fidelity/local`.
"""

from __future__ import annotations

import numpy as np

from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.tracks import Bools, Floats, Tracks


def two_way(reference: Tracks, other: Tracks, allowed: Bools | None = None) -> float:
    """Two-way motion fidelity of two clips, in [-1, 1], 1 is best; nan if the reference does not move.

    A track's velocity is its displacement over `fym.tracks.LAG` frames; below the dead zone it is still. The
    similarity of track a to track b is the mean, over the steps in which a moves, of the cosine of their
    velocities, 0 where b is still or lost. Each moving track takes its best match in the other clip; a
    clip's score is the mean over its moving tracks, each weighted by the way it goes, 0 if none moves. The
    value is the mean of both clips' scores. Both clips must have the same number of frames.
    allowed: (N, N), symmetric, which tracks may match; None = all.
    """
    ours, our_way = directions(reference)
    theirs, their_way = directions(other)
    if not our_way.any():
        return float("nan")
    steps = min(ours.shape[1], theirs.shape[1])
    ours, theirs = ours[:, :steps], theirs[:, :steps]
    return (matched(ours, our_way, theirs, allowed) + matched(theirs, their_way, ours, allowed)) / 2


def directions(tracks: Tracks) -> tuple[Floats, Floats]:
    """Unit velocities (N, steps, 2), zero where still or lost, and the way each track goes (N,) in pixels."""
    step, seen = tracks.displacements()
    length = np.linalg.norm(step, axis=-1)
    moves = seen & (length > tracks.dead_zone)
    unit = np.where(moves[..., None], step / np.maximum(length, 1e-9)[..., None], 0).astype(np.float32)
    return unit, np.where(moves, length, 0).sum(axis=1)


def matched(ours: Floats, way: Floats, theirs: Floats, allowed: Bools | None = None) -> float:
    """Mean over our moving tracks of the similarity to their best match, of those allowed (N, M)."""
    rows = way > 0
    if not rows.any():
        return 0.0
    mine = ours[rows]
    steps = np.abs(mine).max(axis=-1).astype(bool).sum(axis=1)
    similarity = mine.reshape(len(mine), -1) @ theirs.reshape(len(theirs), -1).T / steps[:, None]
    if allowed is not None:
        similarity = np.where(allowed[rows], similarity, -np.inf)
    return float(np.average(similarity.max(axis=1), weights=way[rows]))


METRIC = Metric(
    name="motion_fidelity/two_way",
    version=1,
    definition="velocity cosine of each moving track with its best match, mean of both directions",
    unit="cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.15,
    claims=("reversed pan", "frozen clip", "one-sided match", "missing object", "time-reversed clip"),
    measure=on_tracks(two_way, nan="the reference does not move"),
)
