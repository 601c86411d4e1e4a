"""What a results folder says: means, paired differences with intervals, and costs, for groups of cases.

A mean is over cases of the mean over each one's clips, so that every case counts the same. A difference is
that of a method's clips and those of the method it is compared with, of the same case, prompt and seed; a
control row has one clip for all seeds. While a run is under way methods have different cases; differences
are over the common ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fym.errors import UserError
from fym.motionbench.categories import CATEGORIES, PARTS
from fym.motionbench.methods import CONTROLS, METHODS
from fym.motionbench.report.figures import Cost, Figure, average, cost_of, costs_of, figure_of, values_of
from fym.motionbench.report.scores import SCORES, Score
from fym.motionbench.results import Results, Row

ABLATIONS = (
    "no-decoupling",
    "no-adaptive-rope",
    "no-sparse-sampling",
    "no-motion-loss",
    "no-spatial-stage",
    "random-heads",
    "one-look",
    "adamw",
    "every-noise-level",
    "sparse-to-the-end",
)
SHUFFLED = "shuffled"
CONTROL_ROWS = {
    **{control.name: control.help for control in CONTROLS},
    SHUFFLED: "the first row's clips against other references",
    "base": "the model without tuning",
}


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


def summarise(
    folder: Path, *, against: str = "fym", split: str = "test", methods: Sequence[str] = ()
) -> Summary:
    """methods: only these and the control rows, on the cases that all of these have.

    Raises UserError where there are no results of that split, or none of the method compared with or of one
    of `methods`.
    """
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
    if methods:
        rows = _common(rows, {against, *methods})
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


def _common(rows: Mapping[str, Sequence[Row]], methods: Iterable[str]) -> dict[str, list[Row]]:
    """The rows of `methods` and of the control rows, of the cases that all of `methods` have."""
    methods = set(methods)
    cases = [{row["case"] for row in rows.get(method, ())} for method in methods]
    common = set[str].intersection(*cases)
    if not common:
        names = ", ".join(sorted(methods))
        raise UserError(
            f"No case has results of all of {names}", f"there are: {', '.join(rows)}", "Name others"
        )
    shown = methods.union(CONTROL_ROWS)
    return {m: [row for row in found if row["case"] in common] for m, found in rows.items() if m in shown}


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
    values = {s.name: {m: values_of(rows.get(m, ()), s) for m in order} for s in SCORES}
    keys = {m: {(r["case"], r["target"], r["seed"]) for r in rows.get(m, ())} for m in order}
    tuned = [m for m in order if m not in CONTROL_ROWS or m == "base"]
    wanted = set().union(*(keys[m] for m in tuned))
    costs = {m: costs_of(rows.get(m, ())) for m in order}
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
                    s.name: figure_of(
                        values[s.name][method],
                        None if method == against else values[s.name][against],
                        s,
                        one_clip=of_control,
                    )
                    for s in SCORES
                },
                cost=cost_of(rows.get(method, ()), costs[method], costs[against]),
            )
        )
    means = {
        score: {m: {case: average(clips.values()) for case, clips in v.items()} for m, v in of.items()}
        for score, of in values.items()
    }
    return Group(part, category, lines, means, len({case for case, *_ in wanted}), len(wanted))


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
