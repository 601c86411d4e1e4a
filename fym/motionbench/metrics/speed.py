"""`speed_ratio`: how fast the clip moves, against the reference.

Source: fym; the function and its definition are `fym.tracks.speed_ratio`. Unit: ratio. Range: 0 (frozen) to
infinity, 1 is best; the loss is |log ratio|, so half and double speed are equally wrong.
"""

from __future__ import annotations

import math

from fym.motionbench.metrics.base import Metric, on_tracks
from fym.tracks import speed_ratio


def loss(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


METRIC = Metric(
    name="speed_ratio",
    version=1,
    definition="path length of the moving points over the reference's",
    unit="ratio",
    best=1.0,
    loss=loss,
    tolerance=math.log(1.3),
    claims=("5x speed", "frozen clip"),
    measure=on_tracks(speed_ratio, nan="the reference does not move"),
)
