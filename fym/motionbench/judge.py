"""All scores of a clip made for a case: exact ones, metrics, and against other cases' references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from fym.embedded.checker import Reading, read_clip
from fym.motionbench.case import Case, Target
from fym.motionbench.exact import Seen
from fym.motionbench.metrics import METRICS
from fym.motionbench.pair import Pair
from fym.motionbench.trackers import LUCAS_KANADE
from fym.tracks import Tracks

SHUFFLED = ("direction", "motion_fidelity/two_way")
OTHERS = 3  # cases whose references a clip is scored against in place of its own: those next in the data set


@dataclass(frozen=True, eq=False)
class Footage:
    """A clip (F,H,W,3) uint8 and what is found in it, once."""

    frames: Tensor

    @cached_property
    def tracks(self) -> Tracks:
        return LUCAS_KANADE.track(self.frames)

    @cached_property
    def reading(self) -> Reading:
        return read_clip(self.frames)


class Judge:
    """every: the whole data set, in its order; which other references a case is given depends on that.

    clip: gives a case's reference, frames (F,H,W,3) and their rate.
    """

    def __init__(self, every: Sequence[Case], clip: Callable[[Case], tuple[Tensor, float]]) -> None:
        self.every = list(every)
        self.reference = lru_cache(maxsize=2 * OTHERS)(lambda case: Footage(clip(case)[0]))
        self.fitted = lru_cache(maxsize=1)(_fitted)  # the clip of a control comes once for each target

    def scores(self, clip: Tensor, case: Case, target: Target) -> dict[str, Any]:
        """exact (of a rendered case), metrics and shuffled: see `fym.motionbench.results`."""
        made, reference = self.fitted(clip, self.reference(case))
        found: dict[str, Any] = {}
        seen, ideal = None, case.ideal(target)
        if case.scene is not None and ideal is not None:
            seen = Seen(made.reading, made.frames.shape[2], case.scene, ideal)
            found["exact"] = seen.scores()
        pair = _pair(reference, made, target.prompt, case.prompt)
        metrics = {name: metric.measure(pair).value for name, metric in METRICS.items()}
        if seen is not None:
            metrics["text_alignment"] = float(np.mean(list(found["exact"]["right"].values())))
        rows = [self._against(other, made, seen) for other in self.others(case)]
        names = (*SHUFFLED, *(["cosine"] if seen is not None else []))
        shuffled = {name: _mean([row[name] for row in rows if name in row]) for name in names}
        return {**found, "metrics": metrics, "shuffled": shuffled}

    def others(self, case: Case) -> list[Case]:
        """The OTHERS cases that follow in the category and part, the first after the last."""
        alike = [c for c in self.every if (c.category, c.part) == (case.category, case.part)]
        place = next((n for n, c in enumerate(alike) if c.name == case.name), -1)
        return [*alike[place + 1 :], *alike[: max(place, 0)]][:OTHERS]

    def _against(self, other: Case, made: Footage, seen: Seen | None) -> dict[str, float]:
        fitted, reference = _fitted(made.frames, self.reference(other))
        pair = _pair(reference, made if fitted.frames.shape == made.frames.shape else fitted)
        row = {name: METRICS[name].measure(pair).value for name in SHUFFLED}
        if seen is not None and other.scene is not None:
            row["cosine"] = seen.cosine(other.scene)
        return row


def _fitted(clip: Tensor, reference: Footage) -> tuple[Footage, Footage]:
    """A clip at the reference's size, and the reference, both at the length of the shorter."""
    pair = Pair(reference.frames, clip)
    same = len(pair.reference) == len(reference.frames)
    return Footage(pair.other), reference if same else Footage(pair.reference)


def _pair(reference: Footage, made: Footage, prompt: str = "", reference_prompt: str = "") -> Pair:
    tracks = (reference.tracks, made.tracks)
    return Pair(reference.frames, made.frames, prompt, reference_prompt, known_tracks=tracks)


def _mean(values: Sequence[float]) -> float:
    measured = [value for value in values if np.isfinite(value)]
    return float(np.mean(measured)) if measured else float("nan")
