"""`temporal_consistency/embedding` and `/warping`: is the clip free of flicker?

The first is the number most papers print: the mean cosine of the embeddings of consecutive frames, -1 to 1,
higher is better. It rewards stillness: a frozen clip has 1. The second is the mean difference in grey levels
of consecutive frames after warping by optical flow (Lai et al., "Learning Blind Video Temporal Consistency",
2018; without occlusion mask), less that of the reference, so that hidden and uncovered parts cancel; 0 to
255, lower is better.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from fym.motionbench.flow import FLOW, dense_flow, grey, sampled
from fym.motionbench.metrics.base import Measured, Metric, distance
from fym.motionbench.pair import Pair

WORKING_SIDE = 240  # pixels of the short side, at most, for the flow


def _embedding(pair: Pair) -> Measured:
    vectors = pair.embedder.images(pair.other)
    return Measured(float((vectors[1:] * vectors[:-1]).sum(-1).mean()), pair.embedder.name)


def warping_error(clip: Tensor) -> float:
    """Mean absolute difference in grey levels between each frame and the next one warped back to it."""
    side = min(clip.shape[1:3])
    scale = min(1.0, WORKING_SIDE / side)
    size = (round(clip.shape[2] * scale), round(clip.shape[1] * scale))
    frames = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) if scale < 1 else f for f in clip.numpy()]
    shades = [grey(frame) for frame in frames]
    total = 0.0
    for now, then, shade, next_shade in zip(frames, frames[1:], shades, shades[1:], strict=False):
        back = sampled(then, dense_flow(shade, next_shade))
        total += float(np.abs(back.astype(np.float32) - now).mean())
    return total / (len(frames) - 1)


def _warping(pair: Pair) -> Measured:
    ours, theirs = warping_error(pair.reference), warping_error(pair.other)
    return Measured(max(0.0, theirs - ours), FLOW, details={"clip": theirs, "reference": ours})


EMBEDDING = Metric(
    name="temporal_consistency/embedding",
    version=1,
    definition="mean cosine of the embeddings of consecutive frames",
    unit="cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.05,
    claims=(),  # how much it falls depends on the motion as much as on flicker
    measure=_embedding,
    paired=False,
)
WARPING = Metric(
    name="temporal_consistency/warping",
    version=1,
    definition="difference of consecutive frames after warping by flow, less the reference's",
    unit="grey levels",
    best=0.0,
    loss=distance(0.0),
    tolerance=8.0,
    claims=("flicker",),
    measure=_warping,
)
