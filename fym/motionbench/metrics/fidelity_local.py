"""`motion_fidelity/local`: is every motion of one clip found near the same place in the other?

Source: fym; two-way motion fidelity whose matches must start nearby. Unit: cosine. Range: -1 to 1, higher is
better. It sees place, as `direction` does, and unlike that one it forgives an object another outline.
"""

from __future__ import annotations

import numpy as np

from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.motionbench.metrics.fidelity_two_way import two_way
from fym.tracks import Bools, Tracks

NEAR = 0.1  # of the diagonal: half the width of an object of the usual size


def local(reference: Tracks, other: Tracks) -> float:
    """As `two_way`, but a track is only matched with tracks that start in the same frame and within a tenth
    of the diagonal of its own start. Both clips must have been tracked from the same start points.
    """
    if reference.starts.shape != other.starts.shape:
        raise ValueError(f"different grids: {len(reference.starts)} and {len(other.starts)} tracks")
    return two_way(reference, other, _near(reference))


def _near(tracks: Tracks) -> Bools:
    """(N, N) whether two tracks start together."""
    start = np.take_along_axis(tracks.points, tracks.starts[:, None, None], axis=1)[:, 0]
    gap = np.linalg.norm(start[:, None] - start, axis=-1)
    close = gap <= NEAR * np.hypot(*tracks.size)
    return np.asarray(close & (tracks.starts[:, None] == tracks.starts))


METRIC = Metric(
    name="motion_fidelity/local",
    version=1,
    definition="velocity cosine of each moving track with its best match nearby, mean of both directions",
    unit="cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.15,
    claims=(
        "reversed zoom",
        "reversed pan",
        "frozen clip",
        "one-sided match",
        "missing object",
        "time-reversed clip",
    ),
    measure=on_tracks(local, nan="the reference does not move"),
)
