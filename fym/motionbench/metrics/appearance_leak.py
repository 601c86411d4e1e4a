"""`appearance_leak`: how much of the reference's colours is in a clip whose prompt asks for others?

Source: fym; histogram intersection (Swain and Ballard, "Color indexing", 1991) in CIELAB. Unit: share of
pixels. Range: 0 (no colour in common) to 1 (the reference's colours); lower is better. Only the colours
count: a prompt that keeps a colour of the reference keeps its share of the score.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from fym.motionbench.metrics.base import Measured, Metric, distance
from fym.motionbench.pair import Pair

BINS = (6, 12, 12)  # of lightness, green-red and blue-yellow
RANGES = [0.0, 100.0, -128.0, 128.0, -128.0, 128.0]
FRAMES = 9  # evenly spread ones are enough for colours
SOFTNESS = 0.7  # bins by which the histogram is blurred, so that a slight shade does not change its bin


def colour_overlap(first: Tensor, second: Tensor) -> float:
    """Share of pixels in [0, 1] that two clips (F,H,W,3) uint8 have in common by colour."""
    return float(np.minimum(_histogram(first), _histogram(second)).sum())


def _histogram(clip: Tensor) -> npt.NDArray[np.float64]:
    frames = clip[np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round()].numpy()
    strip = np.concatenate(list(frames)).astype(np.float32) / 255
    lab = cv2.cvtColor(strip, cv2.COLOR_RGB2LAB)
    counts = np.asarray(cv2.calcHist([lab], [0, 1, 2], None, list(BINS), RANGES), np.float64)
    for axis in range(3):
        counts = _blurred(counts, axis)
    return counts / counts.sum()


def _blurred(counts: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    steps = np.arange(-2, 3)
    kernel = np.exp(-0.5 * np.square(steps / SOFTNESS))
    return np.apply_along_axis(lambda row: np.convolve(row, kernel / kernel.sum(), "same"), axis, counts)


def _measure(pair: Pair) -> Measured:
    if not pair.prompt or pair.prompt == pair.reference_prompt:
        return Measured(math.nan, "none", "the prompt asks for no other appearance than the reference's")
    return Measured(colour_overlap(pair.reference, pair.other), "CIELAB histogram")


METRIC = Metric(
    name="appearance_leak",
    version=1,
    definition="share of pixels with colours of the reference, where the prompt asks for others",
    unit="share",
    best=0.0,
    loss=distance(0.0),
    tolerance=0.8,
    claims=("appearance leak",),
    measure=_measure,
    paired=False,
)
