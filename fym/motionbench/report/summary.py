"""What a results folder says: means, paired differences with intervals, and costs, for groups of cases.

A mean is over cases of the mean over each one's clips, so that every case counts the same. A difference is
that of a method's clips and those of the method it is compared with, of the same case, prompt and seed; a
control row has one clip for all seeds. While a run is under way methods have different cases; differences
are over the common ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fym.errors import UserError
from fym.motionbench.bootstrap import interval
from fym.motionbench.categories import CATEGORIES, PARTS
from fym.motionbench.methods import CONTROLS, METHODS
from fym.motionbench.report.scores import SCORES, Score
from fym.motionbench.results import Results, Row

ABLATIONS = (
    "no-decoupling",
    "no-adaptive-rope",
    "no-sparse-sampling",
    "no-motion-loss",
    "no-spatial-stage",
    "random-heads",
    "every-noise-level",
)
SHUFFLED = "shuffled"
CONTROL_ROWS = {
    **{control.name: control.help for control in CONTROLS},
    SHUFFLED: "the first row's clips against other references",
    "base": "the model without tuning",
}
FEW = 5  # cases below which an interval says too little to call anything better or worse
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
    """Medians over cases, peaks the largest. Seconds of tuning for each case, of sampling for each clip."""

    tuning: float  # wall clock
    tuning_cpu: float  # processor
    sampling: float
    sampling_cpu: float
    peak_mib: float
    ratio: float  # median over common cases of tuning_cpu over that of the method compared with
    stages: Mapping[str, tuple[float, float, float]]  # seconds, processor seconds, peak MiB


@dataclass(frozen=True)
class Line:
    """A method or control row on a group of cases."""

    method: str
    kind: str  # compared, baseline, ablation, settings or control
    help: str
    cases: int
    clips: int
    missing_cases: int  # that other methods of the group have
    missing_clips: int
    figures: Mapping[str, Figure]  # by score
    cost: Cost

    @property
    def complete(self) -> bool:
        return not (self.missing_cases or self.missing_clips)


@dataclass(frozen=True)
class Group:
    """Cases of a part, all or those of a category. `values`: score -> method -> case -> mean over clips."""

    part: str
    category: str  # empty: all
    lines: Sequence[Line]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    cases: int
    clips: int

    @property
    def title(self) -> str:
        return f"{self.part}, {self.category or 'all categories'}"

    def line(self, method: str) -> Line:
        return next(line for line in self.lines if line.method == method)

    def measured(self, *, headline: bool) -> list[Score]:
        """The scores that have a value here."""
        return [
            s
            for s in SCORES
            if s.headline == headline and any(line.figures[s.name].cases for line in self.lines)
        ]


@dataclass(frozen=True)
class Failure:
    method: str
    case: str
    attempts: int
    error: str
    where: Sequence[str]


@dataclass(frozen=True)
class Summary:
    """All of a report's figures. `failures`: cases of a method that have no result."""

    against: str
    split: str
    groups: Sequence[Group]
    failures: Sequence[Failure]
    warnings: Sequence[str]
    rows: Mapping[str, Sequence[Row]] = field(repr=False)


def summarise(folder: Path, *, against: str = "fym", split: str = "test") -> Summary:
    """Raises UserError where there are no results of that split, or none of the method compared with."""
    results = Results(folder)
    every = {method: results.read(method) for method in results.methods()}
    if not any(every.values()):
        raise UserError(
            f"{folder} has no results", "no file in it has a line", "Give the folder of `run --results`"
        )
    rows = {m: [row for row in found if row["split"] == split] for m, found in every.items()}
    rows = {method: found for method, found in rows.items() if found}
    if not rows:
        other = sorted({row["split"] for found in every.values() for row in found})
        raise UserError(
            f"{folder} has no results of the {split} cases",
            f"those that it has are of: {', '.join(other)}",
            f"Add --split {other[0]}",
        )
    if against not in rows:
        raise UserError(
            f"{folder} has no results of {against!r}, which all others are compared with",
            f"there are: {', '.join(rows)}",
            "Name one with --against",
        )
    rows[SHUFFLED] = [_shuffled(row) for row in rows[against]]
    groups = []
    for part in PARTS:
        of_part = {m: [row for row in all_rows if row["part"] == part] for m, all_rows in rows.items()}
        present = {row["category"] for of in of_part.values() for row in of}
        for category in ("", *(c for c in CATEGORIES if c in present), *sorted(present - set(CATEGORIES))):
            chosen = {m: [r for r in of if category in ("", r["category"])] for m, of in of_part.items()}
            if any(chosen.values()):
                groups.append(_group(part, category, chosen, against))
    return Summary(against, split, groups, _failures(results, every), _warnings(rows), rows)


def main_score(group: Group, against: str) -> Score:
    """The first headline score that the method compared with has: with the true motion, if that is known."""
    scores = group.measured(headline=True)
    return next((s for s in scores if group.line(against).figures[s.name].cases), scores[0])


def _shuffled(row: Row) -> Row:
    """A line as if its other references had been its own."""
    scores = dict(row.get("shuffled") or {})
    made = {**row, "method": SHUFFLED, "metrics": scores, "cost": {}}
    if "exact" in row:
        made["exact"] = {"cosine": scores.pop("cosine", None)}
    return made


def kind_of(method: str, against: str) -> str:
    if method == against:
        return "compared"
    if method in CONTROL_ROWS:
        return "control"
    if method in ABLATIONS:
        return "ablation"
    return "settings" if " " in method else "baseline"


def _in_order(methods: Iterable[str], against: str) -> list[str]:
    """The one compared with, baselines, ablations, other settings, and all control rows, there or not."""
    kinds = ("compared", "baseline", "ablation", "settings", "control")
    known = [*CONTROL_ROWS, *METHODS]

    def place(method: str) -> tuple[int, int, str]:
        number = known.index(method) if method in known else len(known)
        return kinds.index(kind_of(method, against)), number, method

    return sorted({*methods, *CONTROL_ROWS}, key=place)


def _group(part: str, category: str, rows: Mapping[str, Sequence[Row]], against: str) -> Group:
    order = _in_order([m for m, found in rows.items() if found], against)
    values = {s.name: {m: _values(rows.get(m, ()), s) for m in order} for s in SCORES}
    keys = {m: {(r["case"], r["target"], r["seed"]) for r in rows.get(m, ())} for m in order}
    tuned = [m for m in order if m not in CONTROL_ROWS or m == "base"]
    wanted = set().union(*(keys[m] for m in tuned))
    costs = {m: _costs(rows.get(m, ())) for m in order}
    lines = []
    for method in order:
        of_control = method in CONTROL_ROWS and method not in ("base", SHUFFLED)
        full = {(case, target, 0) for case, target, _ in wanted} if of_control else wanted
        if method == SHUFFLED:
            full = keys[method]
        has = {case for case, *_ in keys[method]}
        lines.append(
            Line(
                method=method,
                kind=kind_of(method, against),
                help=CONTROL_ROWS.get(method) or (METHODS[method].help if method in METHODS else ""),
                cases=len(has),
                clips=len(keys[method]),
                missing_cases=len({case for case, *_ in full} - has),
                missing_clips=len(full - keys[method]),
                figures={
                    s.name: _figure(
                        values[s.name][method],
                        None if method == against else values[s.name][against],
                        s,
                        one_clip=of_control,
                    )
                    for s in SCORES
                },
                cost=_cost(rows.get(method, ()), costs[method], costs[against]),
            )
        )
    means = {
        score: {m: {case: _mean(clips.values()) for case, clips in v.items()} for m, v in of.items()}
        for score, of in values.items()
    }
    return Group(part, category, lines, means, len({case for case, *_ in wanted}), len(wanted))


def _values(rows: Sequence[Row], score: Score) -> Values:
    found: Values = {}
    for row in rows:
        value = score.read(row)
        if math.isfinite(value):
            found.setdefault(row["case"], {})[row["target"], row["seed"]] = value
    return found


def _figure(ours: Values, theirs: Values | None, score: Score, *, one_clip: bool) -> Figure:
    """one_clip: ours has a single seed, which stands for all of theirs."""
    clips = [np.array(list(found.values())) for found in ours.values()]
    if not clips:
        return Figure(math.nan, math.nan, math.nan, 0, 0, None)
    low, high = interval(clips)
    mean = _mean(values.mean() for values in clips)
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
    elif low <= 0 <= high:
        verdict = "tie"
    else:
        verdict = "better" if (low > 0) == score.higher else "worse"
    mean = _mean(values.mean() for values in differences)
    return Difference(mean, low, high, len(differences), sum(map(len, differences)), verdict)


def _costs(rows: Iterable[Row]) -> dict[str, dict[str, list[float]]]:
    """Of each case the stages of its tuning; a case without any has none."""
    return {row["case"]: {k: v for k, v in row["cost"].items() if k != SAMPLE} for row in rows}


def _cost(rows: Sequence[Row], costs: Mapping[str, Any], against: Mapping[str, Any]) -> Cost:
    def total(stages: Mapping[str, list[float]], number: int) -> float:
        return sum(cost[number] for cost in stages.values())

    tuned = [stages for stages in costs.values() if stages]
    samples = [row["cost"][SAMPLE] for row in rows if SAMPLE in row["cost"]]
    both = [c for c in costs if costs[c] and total(against.get(c) or {}, 1) > 0]
    names = list(dict.fromkeys(name for stages in tuned for name in stages))
    stages = {name: [case[name] for case in tuned if name in case] for name in names}
    if samples:
        stages[SAMPLE] = samples
    return Cost(
        tuning=_median(total(stages, 0) for stages in tuned),
        tuning_cpu=_median(total(stages, 1) for stages in tuned),
        sampling=_median(sample[0] for sample in samples),
        sampling_cpu=_median(sample[1] for sample in samples),
        peak_mib=max((cost[2] for found in stages.values() for cost in found), default=math.nan),
        ratio=_median(total(costs[c], 1) / total(against[c], 1) for c in both),
        stages={
            name: (_median(c[0] for c in found), _median(c[1] for c in found), max(c[2] for c in found))
            for name, found in stages.items()
        },
    )


def _failures(results: Results, rows: Mapping[str, Sequence[Row]]) -> list[Failure]:
    """Also of methods that have no result at all."""
    methods = {
        failure["method"]
        for path in results.folder.glob("*.failures.jsonl")
        for failure in results.failures(path.name.removesuffix(".failures.jsonl"))
    }
    found = []
    for method in sorted(methods):
        latest = {failure["case"]: failure for failure in results.failures(method)}
        done = {row["case"] for row in rows.get(method, ())}
        for case in sorted(latest.keys() - done):
            failure = latest[case]
            found.append(
                Failure(method, case, failure["attempt"], failure["error"], failure.get("traceback", ()))
            )
    return found


def _warnings(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What makes figures less comparable than they look."""
    found = []
    models = {row["model"] for of in rows.values() for row in of if row["model"]}
    if len(models) > 1:
        found.append(f"The clips are of {len(models)} models: {', '.join(sorted(models))}.")
    codes = {row["code"] for of in rows.values() for row in of}
    if len(codes) > 1:
        found.append(
            f"The results were made by {len(codes)} versions of the code: {', '.join(sorted(codes))}."
        )
    for method, of in rows.items():
        settings: dict[str, set[str]] = {}
        for row in of:
            settings.setdefault(row["case"], set()).add(row["settings"])
        mixed = sum(len(keys) > 1 for keys in settings.values())
        if mixed and method != SHUFFLED:
            found.append(f"{method}: clips of {mixed} cases are partly of other settings than the rest.")
    return found


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.median(found)) if found else math.nan
