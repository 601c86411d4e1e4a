"""The figures of a method on a group of cases: means, paired differences, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fym.motionbench.bootstrap import interval
from fym.motionbench.report.scores import Score
from fym.motionbench.results import Row

FEW = 5  # cases below which an interval says too little to call anything better or worse
ROUNDING = 1e-9  # what sums of equal and opposite differences may be off 0
SAMPLE = "sample"  # the stage that is not tuning
Values = dict[str, dict[tuple[int, int], float]]  # case -> (target, seed) -> value


@dataclass(frozen=True)
class Difference:
    """To the method compared with; verdict: better, worse, tie (0 is inside the interval) or few (cases)."""

    mean: float
    low: float
    high: float
    cases: int
    clips: int
    verdict: str


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval and what is behind it."""

    mean: float
    low: float
    high: float
    cases: int
    clips: int
    difference: Difference | None


@dataclass(frozen=True)
class Cost:
    """Medians over cases; seconds of tuning for each case, of sampling for each clip.

    Peaks are those of the worst stage. That of the process is the least over cases: a process that has done
    other cases before holds more than a method needs.
    """

    tuning: float  # wall clock
    tuning_cpu: float  # processor
    sampling: float
    sampling_cpu: float
    peak_mib: float
    peak_gpu_mib: float  # the most over cases; nan without a GPU
    ratio: float  # median over common cases of tuning_cpu over that of the method compared with
    stages: Mapping[str, tuple[float, float]]  # seconds, processor seconds

    @property
    def first_clip(self) -> float:
        """Processor seconds until there is a clip: tuning, if there is any, and one sampling."""
        return (self.tuning_cpu if math.isfinite(self.tuning_cpu) else 0.0) + self.sampling_cpu


def values_of(rows: Sequence[Row], score: Score) -> Values:
    """Of the clips that have one."""
    found: Values = {}
    for row in rows:
        value = score.read(row)
        if math.isfinite(value):
            found.setdefault(row["case"], {})[row["target"], row["seed"]] = value
    return found


def figure_of(ours: Values, theirs: Values | None, score: Score, *, one_clip: bool) -> Figure:
    """one_clip: ours has a single seed, which stands for all of theirs."""
    clips = [np.array(list(found.values())) for found in ours.values()]
    if not clips:
        return Figure(math.nan, math.nan, math.nan, 0, 0, None)
    low, high = interval(clips)
    mean = average(values.mean() for values in clips)
    return Figure(
        mean, low, high, len(clips), sum(map(len, clips)), _difference(ours, theirs or {}, score, one_clip)
    )


def _difference(ours: Values, theirs: Values, score: Score, one_clip: bool) -> Difference | None:
    pairs = []
    for case in ours.keys() & theirs.keys():
        found = [
            ours[case][key] - value
            for (target, seed), value in theirs[case].items()
            if (key := (target, 0 if one_clip else seed)) in ours[case]
        ]
        if found:
            pairs.append((case, np.array(found)))
    if not pairs:
        return None
    differences = [found for _, found in sorted(pairs, key=lambda pair: pair[0])]
    low, high = interval(differences)
    if len(differences) < FEW:
        verdict = "few"
    elif low <= ROUNDING and high >= -ROUNDING:
        verdict = "tie"
    else:
        verdict = "better" if (low > 0) == score.higher else "worse"
    mean = average(values.mean() for values in differences)
    return Difference(mean, low, high, len(differences), sum(map(len, differences)), verdict)


def costs_of(rows: Iterable[Row]) -> dict[str, dict[str, list[float]]]:
    """Of each case the stages of its tuning; none where nothing is tuned."""
    return {row["case"]: {k: v for k, v in row["cost"].items() if k != SAMPLE} for row in rows}


def cost_of(rows: Sequence[Row], costs: Mapping[str, Any], against: Mapping[str, Any]) -> Cost:
    """costs: of `rows`, and against: of the method compared with, as `costs_of` gives them."""

    def total(stages: Mapping[str, list[float]], number: int) -> float:
        return sum(cost[number] for cost in stages.values())

    tuned = [stages for stages in costs.values() if stages]
    spent = [row for row in rows if row["cost"]]
    samples = [row["cost"][SAMPLE] for row in rows if SAMPLE in row["cost"]]
    both = [c for c in costs if costs[c] and total(against.get(c) or {}, 1) > 0]
    names = list(dict.fromkeys(name for stages in tuned for name in stages))
    stages = {name: [case[name] for case in tuned if name in case] for name in names}
    if samples:
        stages[SAMPLE] = samples
    return Cost(
        tuning=median(total(stages, 0) for stages in tuned),
        tuning_cpu=median(total(stages, 1) for stages in tuned),
        sampling=median(sample[0] for sample in samples),
        sampling_cpu=median(sample[1] for sample in samples),
        peak_mib=min((max(cost[2] for cost in row["cost"].values()) for row in spent), default=math.nan),
        peak_gpu_mib=max(
            (c[3] for row in spent for c in row["cost"].values() if len(c) > 3), default=math.nan
        ),
        ratio=median(total(costs[c], 1) / total(against[c], 1) for c in both),
        stages={
            name: (median(c[0] for c in found), median(c[1] for c in found)) for name, found in stages.items()
        },
    )


def average(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def median(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.median(found)) if found else math.nan
