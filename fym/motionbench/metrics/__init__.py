"""The metrics, one file each, by name."""

from __future__ import annotations

from fym.motionbench.metrics import direction, fidelity_two_way, speed, trajectory
from fym.motionbench.metrics.base import Measured, Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        fidelity_two_way.METRIC,
        direction.METRIC,
        speed.METRIC,
        trajectory.FRECHET,
        trajectory.DTW,
    )
}

__all__ = ["METRICS", "Measured", "Metric"]
