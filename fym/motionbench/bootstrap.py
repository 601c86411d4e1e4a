"""Intervals of means over cases and their clips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def interval(values: Sequence[np.ndarray], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over cases of the mean over each one's clips.

    values: for each case its clips' values, or their paired differences, one or more. Cases are drawn first,
    with replacement, then the clips of each (Davison and Hinkley, 1997, section 3.8). The same values and
    seed give the same interval.
    """
    means = _weights(tuple(map(len, values)), seed) @ np.concatenate(list(values))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=16)
def _weights(counts: tuple[int, ...], seed: int) -> np.ndarray:
    """(RESAMPLES, clips): what each clip counts in each mean, given the cases' numbers of clips."""
    sizes, most = np.array(counts), max(counts)
    firsts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    cases = rng.integers(len(sizes), size=(RESAMPLES, len(sizes)))[..., None]
    clips = firsts[cases] + (rng.random((*cases.shape[:2], most)) * sizes[cases]).astype(np.int64)
    shares = np.where(np.arange(most) < sizes[cases], 1 / (len(sizes) * sizes[cases]), 0.0)
    weights = np.zeros((RESAMPLES, sizes.sum()))
    np.add.at(weights, (np.arange(RESAMPLES)[:, None, None], clips), shares)
    return weights
