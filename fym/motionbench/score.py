"""All metrics of one pair of clips, with the names of what made them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fym.motionbench.metrics import METRICS, Measured, Metric
from fym.motionbench.pair import Pair


@dataclass(frozen=True)
class Score:
    """One metric's value for one pair."""

    metric: Metric
    measured: Measured

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was not measured is null, with its reason."""
        value = self.measured.value
        return {
            "value": value if math.isfinite(value) else None,
            "unit": self.metric.unit,
            "best": self.metric.best,
            "definition": self.metric.definition,
            "version": self.metric.version,
            "backend": self.measured.backend,
            "note": self.measured.note,
            "details": dict(self.measured.details),
        }


def score(pair: Pair, metrics: Iterable[Metric] = tuple(METRICS.values())) -> list[Score]:
    """Measure every metric on a pair of clips; tracks are made once."""
    return [Score(metric, metric.measure(pair)) for metric in metrics]
