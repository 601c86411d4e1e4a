"""The page: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fym.console import duration
from fym.motionbench.bootstrap import RESAMPLES, interval
from fym.motionbench.methods import METHODS
from fym.motionbench.report import examples
from fym.motionbench.report.figures import FEW
from fym.motionbench.report.markup import (
    SCRIPT,
    STYLE,
    case_table,
    cost_table,
    plural,
    score_table,
    short,
    verdicts,
)
from fym.motionbench.report.scores import SCORES
from fym.motionbench.report.summary import SHUFFLED, Group, Summary, main_score
from fym.motionbench.suite import DATASET, VERSION, cases
from fym.report import plots
from fym.report.markup import escape, number
from fym.report.page import document

COSTS = (
    '<p class="note">Medians over cases of tuning, over clips of sampling; ratio: the median over common '
    "cases of the processor time to that of the method compared with. Wall time depends on what else the "
    "machine did; processor time hardly does, but counts nothing that a GPU did. Peak memory is that of the "
    "process in its worst stage, the least over cases, since a process that has done others holds more."
    "</p>"
)
SHOWN = ("compared", "baseline", "settings")  # kinds of methods whose clips are shown, with base
LEAST_SHARE = 0.5  # of the cases: methods with fewer are left out of the picture of quality against time


def page(summary: Summary, results: Path, clips: Path | None) -> str:
    """clips: the folder `fym motionbench run -o`, or None for a page without them."""
    first = summary.groups[0]
    parts = []
    for group in summary.groups:
        if not group.category:
            others = [g for g in summary.groups if g.part == group.part and g.category]
            parts += _part(summary, group, others, clips)
    parts += [
        ("What has no result", _failures(summary)),
        ("What the scores are", _definitions()),
        ("How to make it again", _origins(summary, results, clips)),
    ]
    title = f"{DATASET} {VERSION}"
    warnings = "".join(
        f'<p class="warning">{escape(text)}</p>' for text in [*summary.warnings, *_unfinished(summary)]
    )
    header = (
        f"<header><h1>{title}: which method carries a motion over?</h1>{_intro(summary)}"
        f"{_tiles(summary, first)}{warnings}</header>"
    )
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>\n" for name, content in parts)
    return document(title, [body], header, style=STYLE, script=SCRIPT)


def _part(
    summary: Summary, group: Group, categories: Sequence[Group], clips: Path | None
) -> list[tuple[str, str]]:
    name = {"synthetic": "Rendered cases", "real": "Filmed cases"}.get(group.part, group.part)
    table = score_table(group, group.measured(headline=True), costs=True)
    of_categories = "".join(_category(g) for g in categories)
    more = "".join(
        f'<details class="category"><summary>{escape(g.category or "all categories")}</summary>'
        f"{score_table(g, g.measured(headline=False), costs=False)}</details>"
        for g in (group, *categories)
    )
    parts = [
        (name, verdicts(group, summary) + table + _reading(summary)),
        (f"{name}: differences", _differences(summary, group)),
        (f"{name}: quality against time", _quality(summary, group)),
        (f"{name}: by category", of_categories),
    ]
    if clips is not None:
        parts.append((f"{name}: clips", _clips(summary, categories, clips)))
    parts += [
        (f"{name}: other scores", more),
        (f"{name}: time and memory", cost_table(group) + COSTS),
        (f"{name}: every case", _every_case(group)),
    ]
    return parts


def _category(group: Group) -> str:
    """Open where there are enough cases to tell something."""
    counts = f"{plural(group.cases, 'case')}, {plural(group.clips, 'clip')} of each complete method"
    return (
        f'<details class="category"{" open" if group.cases >= FEW else ""}>'
        f"<summary><b>{escape(group.category)}</b>: {counts}</summary>"
        f"{score_table(group, group.measured(headline=True), costs=True)}</details>"
    )


def _intro(summary: Summary) -> str:
    untouched = ", on which no setting was chosen" if summary.split == "test" else ""
    return (
        "<p>Every method learns the motion of a reference clip from that clip alone, and then makes clips "
        "of new prompts, which change what is seen and keep how it moves. All are given the same clip, "
        "optimiser steps, batch, rank, sampler and seeds; what they make of it is measured against the "
        "reference. The "
        f"cases are those of the split “{escape(summary.split)}”{untouched}.</p>"
    )


def _tiles(summary: Summary, group: Group) -> str:
    ours = group.line(summary.against)
    main = main_score(group, summary.against)
    rivals = [(line.figures[main.name].mean, line.method) for line in group.lines if line.kind == "baseline"]
    rivals = [rival for rival in rivals if math.isfinite(rival[0])]
    tiles = [(number(ours.figures[main.name].mean), f"{main.label} of {short(summary.against)}")]
    if rivals:
        value, method = max(rivals)
        tiles.append((number(value), f"of {short(method)}, the best baseline"))
    right = ours.figures["right"].mean
    if math.isfinite(right):
        tiles.append((f"{100 * right:.0f} %", "attributes of the prompt right"))
    if math.isfinite(ours.cost.tuning_cpu):
        tiles.append((duration(ours.cost.tuning_cpu), "of one processor to tune on a clip"))
    tiles.append((f"{group.cases}", f"cases, {plural(group.clips, 'clip')} of each method"))
    made = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{made}</div>'


def _unfinished(summary: Summary) -> list[str]:
    parts = [group for group in summary.groups if not group.category]
    lines = {line.method for group in parts for line in group.lines if not line.complete}
    if not lines:
        return []
    return [
        f"The run is not complete: clips that others have are lacking from {', '.join(sorted(lines))}. Means "
        "are over what there is; differences are over common clips only, so read those."
    ]


def _reading(summary: Summary) -> str:
    against = escape(short(summary.against))
    return (
        '<p class="note"><b>How to read it.</b> Large: the mean over cases of the mean over its clips; '
        "↑ more is better, ↓ less is better. Below it the paired difference to the first row, over the clips "
        "of the same case, prompt and seed that both have, and its 95 % interval (bootstrap: cases drawn "
        f"first, then clips of each, {RESAMPLES} times). “Worse” and “better” than {against} are said only "
        f"where the interval excludes 0; else it is a tie; below {FEW} common cases nothing is said. In the "
        "first row the interval is that of the mean. Where a figure is of fewer cases than the row, their "
        "number stands below it; every figure’s counts show when the mouse is on it, and are in the CSV and "
        "JSON tables.</p>"
        '<p class="note"><b>Control rows</b> show what a score gives without any transfer: the reference '
        "itself, its first frame throughout, the reference reversed, the first row’s clips scored against "
        "three other references of the category (shuffled), and the model without tuning (base). A reference "
        "has its own look, so its attributes are wrong for every prompt.</p>"
    )


def _differences(summary: Summary, group: Group) -> str:
    main = main_score(group, summary.against)
    shown = [main, *(s for s in group.measured(headline=True) if s.name in ("right", "text_alignment"))]
    lines = [
        line for line in group.lines if line.kind not in ("compared", "control") or line.method == "base"
    ]
    panels = {}
    for score in dict.fromkeys(shown):
        rows = []
        for line in lines:
            d = line.figures[score.name].difference
            rows.append((short(line.method), *((d.mean, d.low, d.high) if d else (math.nan,) * 3)))
        panels[score.label] = rows
    if not lines:
        return '<p class="missing">There is no other method yet.</p>'
    figure = plots.differences(panels, against=short(summary.against))
    return (
        f'<div class="plot">{plots.to_svg(figure, "Paired differences with intervals")}</div>'
        f'<p class="note">Left of the line, blue: worse than {escape(short(summary.against))}; right of it, '
        "orange: better; grey: a tie.</p>"
    )


def _quality(summary: Summary, group: Group) -> str:
    """Over the cases that all shown methods have."""
    main = main_score(group, summary.against)
    values = group.values[main.name]
    enough = LEAST_SHARE * len(values[summary.against])
    lines = [
        line
        for line in group.lines
        if (line.kind != "control" or line.method == "base") and len(values[line.method]) >= max(1, enough)
    ]
    common = set.intersection(*(set(values[line.method]) for line in lines)) if lines else set()
    if not common:
        return '<p class="missing">No case has a result of all methods yet.</p>'
    points = []
    for line in lines:
        found = [values[line.method][case] for case in sorted(common)]
        low, high = interval([np.array([value]) for value in found])
        points.append((short(line.method), line.cost.first_clip, sum(found) / len(found), low, high))
    figure = plots.quality_against_time(
        points,
        quality=main.label,
        time="processor seconds until the first clip: tuning and one sampling",
        marked=short(summary.against),
    )
    left_out = [
        line.method
        for line in group.lines
        if line.kind not in ("control",) and line not in lines and line.cases
    ]
    words = (
        f"Means over the {plural(len(common), 'case')} that all of them have, with 95 % intervals over cases."
    )
    if left_out:
        words += f" Left out, with fewer than half of the cases: {', '.join(left_out)}."
    svg = plots.to_svg(figure, f"{main.label} against time")
    return f'<div class="plot">{svg}</div><p class="note">{escape(words)}</p>'


def _clips(summary: Summary, categories: Sequence[Group], clips: Path) -> str:
    captions = {case.name: case.prompt for case in cases()}
    prompts = {row["case"]: row["prompt"] for row in summary.rows[summary.against] if not row["target"]}
    made = []
    for group in categories:
        score = main_score(group, summary.against)
        methods = [line.method for line in group.lines if line.clips and line.kind in SHOWN]
        methods = ["reference", *methods, *(["base"] if group.line("base").clips else [])]
        for name, rank, value in examples.chosen(group, summary.against, score.name):
            title = f"{rank} case of {group.category}: {score.label} {number(value)}"
            words = " → ".join(f"“{text}”" for text in (captions.get(name), prompts.get(name)) if text)
            made.append(
                f'<div class="example"><h3>{escape(name)} <span class="soft">{escape(title)}</span></h3>'
                f'<p class="soft">{escape(words)}</p>{_video(examples.example(name, methods, clips))}</div>'
            )
    words = (
        f"Of each category the best, the median and the worst case of {escape(short(summary.against))} by "
        "the score that is named, always the clip of the first prompt and the first seed. Below each clip "
        "its moving points tracked; the colour tells where a track starts, so equal motion looks equal."
    )
    return f'<p class="note">{words}</p>{"".join(made)}'


def _video(found: examples.Example) -> str:
    absent = f'<p class="note">No clip of: {escape(", ".join(found.missing))}.</p>' if found.missing else ""
    if not found.video:
        return absent
    address = "data:video/mp4;base64," + base64.b64encode(found.video).decode("ascii")
    widths = " ".join(f"{width}fr" for _, width in found.columns)
    total = sum(width for _, width in found.columns) + examples.GAP * (len(found.columns) - 1)
    labels = "".join(f"<span><b>{escape(label)}</b></span>" for label, _ in found.columns)
    style = f"grid-template-columns: {widths}; max-width: {total}px"
    return (
        f'<div class="columns-of" style="{style}">{labels}</div>'
        f'<video muted loop playsinline controls preload="auto" width="{total}" src="{address}"></video>'
        f"{absent}"
    )


def _every_case(group: Group) -> str:
    tables = []
    for number_, score in enumerate(group.measured(headline=True)):
        tables.append(
            f'<details class="category"{"" if number_ else " open"}><summary>{escape(score.label)}</summary>'
            f"{case_table(group, score)}</details>"
        )
    return '<p class="note">Click a head to sort.</p>' + "".join(tables)


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return "<p>No case failed for good.</p>"
    items = ""
    for f in summary.failures:
        about = f"{plural(f.attempts, 'attempt')}; {' ← '.join(reversed(f.where))}"
        items += (
            f"<li><b>{escape(f.method)}</b> on {escape(f.case)}: {escape(f.error)} "
            f'<span class="soft">({escape(about)})</span></li>'
        )
    return f"<p>Cases that have no result; the next run tries them again.</p><ul>{items}</ul>"


def _definitions() -> str:
    made = "".join(f"<dt>{escape(s.label)} {s.arrow}</dt><dd>{escape(s.definition)}</dd>" for s in SCORES)
    return f'<dl class="definitions">{made}</dl>'


def _origins(summary: Summary, results: Path, clips: Path | None) -> str:
    part = "" if len({g.part for g in summary.groups}) > 1 else f" --part {summary.groups[0].part}"
    made = sorted(method for method, rows in summary.rows.items() if rows[0]["model"] and method != SHUFFLED)
    chosen = "" if set(made) == set(METHODS) else "".join(f" --method {shlex.quote(m)}" for m in made)
    place = f" -o {shlex.quote(str(clips))}" if clips else ""
    command = f"fym motionbench run{chosen}{part} --split {summary.split}"
    command += f" --results {shlex.quote(str(results))}{place}"
    parts = [f"<pre><code>{escape(command)}</code></pre>"]
    for method in made:
        row = summary.rows[method][0]
        parts.append(_origin(results, f"{row['settings']}.toml", f"settings of {method} on {row['case']}"))
    codes = dict.fromkeys(row["code"] for rows in summary.rows.values() for row in rows)
    parts += [_origin(results, f"{key}.json", f"code {key}") for key in codes]
    models = dict.fromkeys(row["model"] for rows in summary.rows.values() for row in rows if row["model"])
    return "".join(parts) + f'<p class="note">Model: {escape(", ".join(models))}.</p>'


def _origin(results: Path, name: str, title: str) -> str:
    path = results / "origins" / name
    text = path.read_text("utf-8") if path.is_file() else f"{name} is not in the results folder"
    return f"<details><summary>{escape(title)}</summary><pre><code>{escape(text)}</code></pre></details>"
