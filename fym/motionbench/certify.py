"""The certificate of a metric: which defects it sees, whether it raises false alarms, how exact it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fym.motionbench.attributes import embedded_world
from fym.motionbench.defects import DEFECTS, WRONG_MOTIONS, Case, Footage, make_case
from fym.motionbench.metrics import METRICS, Metric
from fym.motionbench.pair import Pair
from fym.motionbench.trackers import LUCAS_KANADE, Tracker
from fym.tracks import Tracks

SEEDS = 3
EXACT = 1e-5  # loss of a clip against itself that is rounding, in 32-bit coordinates


@dataclass(frozen=True)
class Row:
    """One metric on one case: its values for the faulty, the faithful and the reference clip itself, from
    tracks, and for the first two from true tracks. nan: not measured.
    """

    metric: Metric
    defect: str
    seed: int
    faulty: float
    faithful: float
    itself: float
    true_faulty: float
    true_faithful: float

    @property
    def seen(self) -> bool:
        """Whether the metric tells the faulty clip from the faithful one."""
        return self.metric.sees(self.faulty) and not self.false_alarm

    @property
    def false_alarm(self) -> bool:
        return self.metric.sees(self.faithful)

    @property
    def itself_perfect(self) -> bool:
        return not self.metric.paired or math.isnan(self.itself) or self.metric.loss(self.itself) <= EXACT


@dataclass(frozen=True)
class Verdict:
    """What the rows say of one metric."""

    metric: Metric
    seen: dict[str, float]  # defect -> share of the seeds in which it is seen
    false_alarms: float  # share of all faithful clips
    itself_perfect: bool
    values: dict[str, tuple[float, float]]  # defect -> mean value of the faulty and of the faithful clips
    errors: list[float]  # |from tracks - from true tracks| of the clips measured by both

    @property
    def missed(self) -> list[str]:
        """Claimed defects that were tried and not seen in every seed."""
        return [d for d in self.metric.claims if self.seen.get(d, 1.0) < 1]

    @property
    def passed(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "certified": self.passed,
            "claims": list(self.metric.claims),
            "seen": self.seen,
            "values": {
                defect: {"faulty": _or_null(faulty), "faithful": _or_null(faithful)}
                for defect, (faulty, faithful) in self.values.items()
            },
            "false_alarms": self.false_alarms,
            "itself_perfect": self.itself_perfect,
            "median_error": float(np.median(self.errors)) if self.errors else None,
        }

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass, one sentence each."""
        found = [f"it does not see: {', '.join(self.missed)}"] if self.missed else []
        if not self.metric.claims:
            found.append("it claims to see no defect")
        if not self.itself_perfect:
            found.append("it does not score a clip against itself as perfect")
        if self.false_alarms:
            found.append(f"it calls {self.false_alarms:.0%} of the faithful clips wrong")
        return found


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def examine(
    metrics: Sequence[Metric] = tuple(METRICS.values()),
    *,
    defects: Iterable[str] = DEFECTS,
    seeds: Iterable[int] = range(SEEDS),
    tracker: Tracker = LUCAS_KANADE,
) -> list[Row]:
    """Every metric on every defect and seed; about 3 s a case on one core."""
    seeds = list(seeds)
    return [
        row
        for defect in defects
        for seed in seeds
        for row in _on_case(metrics, make_case(defect, seed), seed, tracker)
    ]


def _on_case(metrics: Sequence[Metric], case: Case, seed: int, tracker: Tracker) -> list[Row]:
    clips = (case.faulty, case.faithful, case.reference)
    found = [tracker.track(clip.frames) for clip in clips]
    tracked = [_pair(case, clip, (found[-1], own)) for clip, own in zip(clips, found, strict=True)]
    true = [_pair(case, clip, (case.reference.tracks, clip.tracks)) for clip in clips[:2]]
    return [
        Row(metric, case.defect, seed, *(metric.measure(pair).value for pair in (*tracked, *true)))
        for metric in metrics
    ]


def _pair(case: Case, clip: Footage, tracks: tuple[Tracks, Tracks]) -> Pair:
    return Pair(
        case.reference.frames,
        clip.frames,
        prompt=case.prompt,
        reference_prompt=case.reference_prompt,
        known_tracks=tracks,
        reader=embedded_world,
        wanted=case.attributes,
    )


def judge(rows: Iterable[Row]) -> list[Verdict]:
    """One verdict a metric, in the order of the rows."""
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        by_metric.setdefault(row.metric.name, []).append(row)
    return [_verdict(own) for own in by_metric.values()]


def _verdict(rows: list[Row]) -> Verdict:
    by_defect: dict[str, list[Row]] = {}
    for row in rows:
        by_defect.setdefault(row.defect, []).append(row)
    pairs = [
        pair
        for row in rows
        if row.defect in WRONG_MOTIONS
        for pair in ((row.faulty, row.true_faulty), (row.faithful, row.true_faithful))
    ]
    return Verdict(
        metric=rows[0].metric,
        seen={defect: float(np.mean([row.seen for row in own])) for defect, own in by_defect.items()},
        false_alarms=float(np.mean([row.false_alarm for row in rows])),
        values={
            defect: (_mean([row.faulty for row in own]), _mean([row.faithful for row in own]))
            for defect, own in by_defect.items()
        },
        itself_perfect=all(row.itself_perfect for row in rows),
        errors=[abs(a - b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)],
    )


def _mean(values: list[float]) -> float:
    """Of the measured ones; nan if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
