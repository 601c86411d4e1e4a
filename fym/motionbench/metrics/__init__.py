"""The metrics, one file each, by name."""

from __future__ import annotations

from fym.motionbench.metrics import (
    appearance_leak,
    camera_error,
    direction,
    fidelity_legacy,
    fidelity_local,
    fidelity_two_way,
    object_residual,
    speed,
    temporal_consistency,
    text_alignment,
    trajectory,
)
from fym.motionbench.metrics.base import Measured, Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        fidelity_legacy.METRIC,
        fidelity_two_way.METRIC,
        fidelity_local.METRIC,
        direction.METRIC,
        speed.METRIC,
        trajectory.FRECHET,
        trajectory.DTW,
        camera_error.METRIC,
        object_residual.METRIC,
        temporal_consistency.EMBEDDING,
        temporal_consistency.WARPING,
        text_alignment.METRIC,
        appearance_leak.METRIC,
    )
}

__all__ = ["METRICS", "Measured", "Metric"]
