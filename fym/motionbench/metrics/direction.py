"""`direction`: do points with the same start move the same way?

Source: fym; the function and its definition are `fym.tracks.direction`. Unit: cosine. Range: -1 (reversed),
0 (unrelated or frozen) to 1 (the same), higher is better.
"""

from __future__ import annotations

from fym.motionbench.metrics.base import Metric, distance, on_tracks
from fym.tracks import direction

METRIC = Metric(
    name="direction",
    version=2,
    definition="cosine of the velocities of points with the same start",
    unit="cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.3,
    claims=(
        "reversed zoom",
        "reversed pan",
        "frozen clip",
        "one-sided match",
        "missing object",
        "time-reversed clip",
    ),
    measure=on_tracks(direction, nan="the reference does not move, or the other clip cannot be tracked"),
)
