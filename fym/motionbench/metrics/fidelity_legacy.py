"""`motion_fidelity/legacy`: the number other papers print, with its defects, for comparison only.

Source: the code published with "Space-Time Diffusion Features for Zero-Shot Text-Driven Motion Transfer"
(Yatim et al., 2024) and copied by later evaluators. Unit: cosine. Range: -1 to 1, higher is better. It is
blind to place, speed and what is missing, and, since it subtracts an identity matrix that belongs to a
matrix of self-similarity, a clip against itself may score below 1.
"""

from __future__ import annotations

import numpy as np

from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.tracks import Floats, Tracks


def legacy(generated: Floats, reference: Floats) -> float:
    """Motion fidelity of tracks (N, F, 2) against reference tracks (M, F, 2), as published.

    s_nm = mean over frame pairs of the cosine between displacements, less 1 where n = m; the value is the
    mean over n of the maximum over m. A displacement of exactly zero counts 0 (the published code gives nan).
    """
    ours, theirs = _unit(generated), _unit(reference)
    similarity = ours.reshape(len(ours), -1) @ theirs.reshape(len(theirs), -1).T / ours.shape[1]
    return float((similarity - np.eye(*similarity.shape, dtype=similarity.dtype)).max(axis=1).mean())


def _unit(points: Floats) -> Floats:
    step = np.diff(points, axis=1)
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.divide(step, length, out=np.zeros_like(step), where=length > 0)


def _of_tracks(reference: Tracks, other: Tracks) -> float:
    """The published protocol: only tracks that start in the first frame, lost or not."""
    return legacy(other.points[other.starts == 0], reference.points[reference.starts == 0])


METRIC = Metric(
    name="motion_fidelity/legacy",
    version=1,
    definition="unit displacement cosine, best match in the reference, mean, identity subtracted",
    unit="cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.15,
    claims=("reversed pan", "frozen clip", "one-sided match", "missing object"),
    measure=on_tracks(_of_tracks, nan=""),
)
