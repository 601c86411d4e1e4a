"""What a metric is, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fym.motionbench.pair import Pair
from fym.tracks import Tracks


@dataclass(frozen=True)
class Measured:
    """One value with what made it. nan means not measured, and `note` says why."""

    value: float
    backend: str
    note: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


def distance(best: float) -> Callable[[float], float]:
    """The loss of a score whose best value is `best`: how far it is from it."""
    return lambda value: abs(value - best)


@dataclass(frozen=True)
class Metric:
    """A score of a clip against a reference.

    A clip whose `loss` (0 is perfect) is above `tolerance` is called different from the reference; honest
    transfers stay below. `claims` names the defects (`fym.motionbench.defects`) it is made to see;
    without any it cannot be certified. `paired`
    tells a comparison, perfect for a clip against itself, from a property of the clip alone.
    """

    name: str
    version: int
    definition: str  # one line, for tables
    unit: str
    best: float
    loss: Callable[[float], float]
    tolerance: float
    claims: tuple[str, ...]
    measure: Callable[[Pair], Measured]
    paired: bool = True

    def sees(self, value: float) -> bool:
        """Whether the value tells that something is wrong; what was not measured tells nothing."""
        return not math.isnan(value) and self.loss(value) > self.tolerance


def on_tracks(score: Callable[[Tracks, Tracks], float], *, nan: str) -> Callable[[Pair], Measured]:
    """`Metric.measure` of a function of two clips' tracks; `nan` is the reason when it has no value."""

    def measure(pair: Pair) -> Measured:
        value = score(*pair.tracks)
        return Measured(value, pair.track_backend, nan if math.isnan(value) else "")

    return measure
