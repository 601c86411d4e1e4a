"""`text_alignment`: does the clip show what its prompt asks for?

With a reader of attributes and the attributes asked for (clips of the embedded world), the share of them that
is found: exact, 0 to 1. Otherwise, with CLIP given, the mean over frames of the cosine of frame and prompt
(Radford et al., 2021; as in most papers), -1 to 1. Without either it is not measured. Higher is better; the
two do not compare, so the backend is named.
"""

from __future__ import annotations

import math

from fym.motionbench.metrics.base import Measured, Metric, distance
from fym.motionbench.pair import Pair


def _measure(pair: Pair) -> Measured:
    if pair.reader is not None and pair.wanted:
        found = pair.reader(pair.other)
        right = {name: float(found.get(name) == value) for name, value in pair.wanted.items()}
        return Measured(sum(right.values()) / len(right), "attributes by segmentation", details=right)
    if pair.embedder.text is not None and pair.prompt:
        cosine = pair.embedder.images(pair.other) @ pair.embedder.text(pair.prompt)
        return Measured(float(cosine.mean()), pair.embedder.name)
    missing = "no prompt is given" if pair.embedder.text is not None else "it needs CLIP or known attributes"
    return Measured(math.nan, "none", missing)


METRIC = Metric(
    name="text_alignment",
    version=1,
    definition="share of the prompt's attributes found, or CLIP cosine of frames and prompt",
    unit="share, or cosine",
    best=1.0,
    loss=distance(1.0),
    tolerance=0.2,
    claims=("appearance leak", "wrong attribute"),
    measure=_measure,
    paired=False,
)
