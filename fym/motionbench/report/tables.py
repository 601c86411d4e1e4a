"""The tables of a report: CSV and JSON of everything, LaTeX and Markdown of the headline scores."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fym.motionbench.report.figures import FEW, Cost, Difference
from fym.motionbench.report.scores import SCORES, Score
from fym.motionbench.report.summary import Group, Line, Summary, main_score
from fym.motionbench.results import compact
from fym.motionbench.suite import DATASET, VERSION
from fym.report.markup import number, signed

COSTS: Mapping[str, Callable[[Cost], float]] = {
    "tuning_seconds": lambda cost: cost.tuning,
    "tuning_cpu_seconds": lambda cost: cost.tuning_cpu,
    "tuning_cpu_ratio": lambda cost: cost.ratio,
    "sampling_seconds": lambda cost: cost.sampling,
    "sampling_cpu_seconds": lambda cost: cost.sampling_cpu,
    "peak_mib": lambda cost: cost.peak_mib,
    "peak_gpu_mib": lambda cost: cost.peak_gpu_mib,
}
COLUMNS = (
    *(
        "part",
        "category",
        "method",
        "kind",
        "score",
        "mean",
        "low",
        "high",
        "cases",
        "clips",
        "missing_clips",
    ),
    *("difference", "difference_low", "difference_high", "common_cases", "common_clips", "verdict"),
)


def as_csv(summary: Summary) -> str:
    """A line for each group, method and score; costs as scores of their own."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for group in summary.groups:
        for line in group.lines:
            about = {"part": group.part, "category": group.category or "all", "method": line.method}
            about |= {"kind": line.kind, "missing_clips": str(line.missing_clips)}
            for name, figure in line.figures.items():
                if figure.cases:
                    writer.writerow({**about, "score": name, **_flat(figure)})
            for name, read in COSTS.items():
                if math.isfinite(value := read(line.cost)):
                    row = {"mean": compact(value), "cases": line.cases, "clips": line.clips}
                    writer.writerow({**about, "score": name, **row})
    return text.getvalue()


def _flat(figure: Any) -> dict[str, Any]:
    flat = compact({name: getattr(figure, name) for name in ("mean", "low", "high", "cases", "clips")})
    difference: Difference | None = figure.difference
    if difference:
        flat |= compact(
            {
                "difference": difference.mean,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "common_cases": difference.cases,
                "common_clips": difference.clips,
                "verdict": difference.verdict,
            }
        )
    return dict(flat)


def as_json(summary: Summary) -> str:
    """Everything the page's figures are made of; null where nothing is measured."""
    record = {
        "dataset": f"{DATASET} {VERSION}",
        "split": summary.split,
        "against": summary.against,
        "warnings": list(summary.warnings),
        "scores": {
            s.name: {"definition": s.definition, "best": "highest" if s.higher else "lowest"} for s in SCORES
        },
        "groups": [
            {
                "part": group.part,
                "category": group.category or "all",
                "cases": group.cases,
                "clips": group.clips,
                "methods": {line.method: _line(line) for line in group.lines},
            }
            for group in summary.groups
        ],
        "failures": [asdict(failure) for failure in summary.failures],
    }
    return json.dumps(compact(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _line(line: Line) -> dict[str, Any]:
    made = asdict(line)
    made["figures"] = {name: figure for name, figure in made["figures"].items() if figure["cases"]}
    return made


# ------------------------------------------------------------------ for README and papers
def as_markdown(summary: Summary) -> str:
    """For each part the headline scores, then the first of them by category."""
    parts = []
    for title, heads, rows in _tables(summary, newline="<br>"):
        lines = [_pipes(heads), _pipes(["---"] + ["---:"] * (len(heads) - 1)), *map(_pipes, rows)]
        parts.append(f"**{title}**\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, _reading(summary)]) + "\n"


def as_latex(summary: Summary) -> str:
    """The same as tabulars; they need the package booktabs."""
    parts = []
    for title, heads, rows in _tables(summary, newline=" "):
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in (heads, *rows)]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        columns = "l" + "r" * (len(heads) - 1)
        parts.append(f"% {title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}")
    return "\n\n".join([*parts, f"% {_reading(summary)}"]) + "\n"


Table = tuple[str, list[str], list[list[str]]]  # title, heads, rows


def _tables(summary: Summary, *, newline: str) -> list[Table]:
    tables = []
    for group in summary.groups:
        if not group.category:
            categories = [g for g in summary.groups if g.part == group.part and g.category]
            score = main_score(group, summary.against)
            tables += [_headlines(group, newline), _by_category(group, categories, score, newline)]
    return tables


def _headlines(group: Group, newline: str) -> Table:
    scores = group.measured(headline=True)
    rows = []
    for line in group.lines:
        counts = f"{line.cases}, {line.clips}" + ("" if line.complete else f"{newline}incomplete")
        cells = [_cell(line, s, newline) for s in scores]
        rows.append([_name(line), *cells, _seconds(line), counts])
    heads = ["method", *(f"{s.label} {s.arrow}" for s in scores), "tuning, s ↓", "cases, clips"]
    return f"{group.part}: {group.cases} cases, {group.clips} clips", heads, rows


def _by_category(group: Group, categories: Sequence[Group], score: Score, newline: str) -> Table:
    rows = [
        [
            _name(line),
            *(_cell(g.line(line.method), score, newline) if _has(g, line) else "" for g in categories),
        ]
        for line in group.lines
    ]
    heads = ["method", *(f"{g.category}, {g.cases} cases" for g in categories)]
    return f"{group.part}: {score.label} by category", heads, rows


def _has(group: Group, line: Line) -> bool:
    return any(line.method == other.method for other in group.lines)


def _name(line: Line) -> str:
    return f"{line.method} (control)" if line.kind == "control" else line.method


def _seconds(line: Line) -> str:
    return f"{line.cost.tuning_cpu:.0f}" if math.isfinite(line.cost.tuning_cpu) else ""


def _cell(line: Line, score: Score, newline: str) -> str:
    """A mean, and its difference unless there are too few cases; what is not worse says so."""
    figure = line.figures[score.name]
    if not figure.cases:
        return ""
    text = number(figure.mean)
    d = figure.difference
    if d is not None and d.verdict != "few":
        text += f"{newline}{signed(d.mean)} ({signed(d.low)} to {signed(d.high)})"
        text += "" if d.verdict == "worse" else f" {d.verdict}"
    cases = d.cases if d is not None else figure.cases
    return text + ("" if cases == line.cases else f", {cases} cases")


def _reading(summary: Summary) -> str:
    return (
        f"{DATASET} {VERSION}, {summary.split} cases; means over cases. Second figure: paired difference to "
        f"{summary.against} on common clips with its 95 % bootstrap interval over cases and clips, where "
        f"there are {FEW} cases; a tie where that holds 0, worse than {summary.against} where nothing is "
        "said. Tuning: median processor seconds of a case."
    )


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash "),
        *((c, "\\" + c) for c in "&%$#_{}"),
        ("↑", r"$\uparrow$"),
        ("↓", r"$\downarrow$"),
        ("−", "$-$"),
        ("~", r"\textasciitilde "),
    ):
        text = text.replace(plain, escaped)
    return text
