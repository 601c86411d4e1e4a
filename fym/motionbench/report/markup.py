"""The page's tables, and the style and script that it adds to those of all reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fym.console import duration
from fym.motionbench.report.scores import Score
from fym.motionbench.report.summary import Figure, Group, Line, Summary, main_score
from fym.report.markup import escape, number, row, signed, table

STYLE = """
.scores td, .scores th { padding: 7px 13px 7px 0; }
.scores tr.control td span { color: var(--soft); font-weight: 400; }
.scores td.number { white-space: nowrap; }
.scores th { vertical-align: bottom; } .scores b { font-weight: 620; font-size: 15px; }
.scores td span { display: block; font-size: 12px; line-height: 1.4; color: var(--soft); }
.scores td .worse { color: var(--spatial); } .scores td .better { color: var(--temporal); font-weight: 600; }
.scores tr.compared td { background: color-mix(in srgb, var(--temporal) 10%, transparent); }
.scores tr.kind th { padding-top: 16px; border-bottom: none; }
.scores td:first-child { min-width: 150px; max-width: 230px; overflow-wrap: anywhere; padding-left: 8px; }
.scores td .incomplete { color: var(--temporal); }
.sortable td { white-space: nowrap; }
.sortable th { cursor: pointer; } .sortable th[aria-sort=ascending]::after { content: " ▲"; }
.sortable th[aria-sort=descending]::after { content: " ▼"; }
.example { margin: 0 0 30px; } .example video { display: block; max-width: 100%; height: auto;
  border-radius: 5px; }
.columns-of { display: grid; gap: 6px; font-size: 13px; margin: 4px 0 4px; }
.columns-of span { overflow: hidden; text-overflow: ellipsis; }
.verdicts li { margin: 4px 0; max-width: 100ch; } ul.verdicts { padding-left: 20px; margin: 18px 0; }
details.category { margin: 10px 0; } details.category > summary { font-size: 15px; color: var(--ink); }
dl.definitions { grid-template-columns: minmax(150px, max-content) 1fr; }
"""

# Videos play while they are seen; a click on a head of a sortable table sorts by its column.
SCRIPT = """
if (!matchMedia('(prefers-reduced-motion: reduce)').matches) {
  const seen = new IntersectionObserver((entries) => entries.forEach((e) =>
    e.isIntersecting ? e.target.play().catch(() => {}) : e.target.pause()));
  document.querySelectorAll('.example video').forEach((v) => seen.observe(v));
}
for (const table of document.querySelectorAll('table.sortable')) {
  const [head, ...rows] = table.rows;
  [...head.cells].forEach((cell, column) => cell.addEventListener('click', () => {
    const up = cell.getAttribute('aria-sort') === 'descending';
    [...head.cells].forEach((c) => c.removeAttribute('aria-sort'));
    cell.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const of = (row) => row.cells[column].textContent.replace('\\u2212', '-');
    const compare = (a, b) => {
      const [x, y] = [of(a), of(b)], [m, n] = [parseFloat(x), parseFloat(y)];
      if (isNaN(m) && isNaN(n)) return x.localeCompare(y) * (up ? -1 : 1);
      return isNaN(m) ? 1 : isNaN(n) ? -1 : up ? m - n : n - m;
    };
    rows.sort(compare).forEach((row) => row.parentNode.append(row));
  }));
}
"""
KINDS = {
    "compared": "",
    "baseline": "baselines",
    "ablation": "ablations",
    "settings": "other settings",
    "control": "control rows",
}


LONGEST = 26  # characters of a method's name in running text and pictures


def short(method: str) -> str:
    """A method's name without the tail of its settings."""
    return method if len(method) <= LONGEST else method[: LONGEST - 1] + "…"


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def score_table(group: Group, scores: Sequence[Score], *, costs: bool) -> str:
    """A row for each method: means, differences with their intervals, and what is behind them."""
    heads = "".join(
        f'<th class="number" title="{escape(s.definition)}">{escape(s.label)}\u00a0{s.arrow}</th>'
        for s in scores
    )
    heads += '<th class="number">tuning,<br>processor time\u00a0↓</th>' if costs else ""
    lines, kind = [], "compared"
    for line in group.lines:
        if line.kind != kind:
            kind = line.kind
            lines.append(f'<tr class="kind"><th colspan="{len(scores) + 2}">{KINDS[kind]}</th></tr>')
        cells = "".join(_cell(line, line.figures[s.name]) for s in scores) + (_tuning(line) if costs else "")
        lines.append(f'<tr class="{line.kind}"><td>{_name(line)}</td>{cells}</tr>')
    head = f"<tr><th>method</th>{heads}</tr>"
    return f'<div class="wide"><table class="scores">{head}{"".join(lines)}</table></div>'


def _name(line: Line) -> str:
    if not line.clips:
        return f"<b>{escape(line.method)}</b><span>{escape(line.help)}; no results yet</span>"
    text = f"<b>{escape(line.method)}</b><span>{escape(line.help)}</span>"
    text += f"<span>{plural(line.cases, 'case')}, {plural(line.clips, 'clip')}</span>"
    if not line.complete:
        missing = f"{plural(line.missing_cases, 'case')}, {plural(line.missing_clips, 'clip')} missing"
        text += f'<span class="incomplete">incomplete: {missing}</span>'
    return text


def _cell(line: Line, figure: Figure) -> str:
    if not figure.cases:
        return '<td class="number">–</td>'
    counts = f"{plural(figure.cases, 'case')}, {plural(figure.clips, 'clip')}"
    d = figure.difference
    if line.kind == "compared":
        lines = [f"<span>{number(figure.low)} to {number(figure.high)}</span>"]
    elif d is None or d.verdict == "few":
        lines = []
    else:
        lines = [
            f'<span class="{d.verdict}">{signed(d.mean)} {d.verdict}</span>',
            f"<span>{signed(d.low)} to {signed(d.high)}</span>",
        ]
    if figure.cases != line.cases:
        lines.append(f"<span>{counts}</span>")
    if d is not None:
        common = f"{plural(d.cases, 'common case')}, {plural(d.clips, 'clip')}"
        if d.cases != figure.cases:
            lines.append(f"<span>{common}</span>")
        counts += f"; difference over {common}"
    return f'<td class="number" title="{counts}"><b>{number(figure.mean)}</b>{"".join(lines)}</td>'


def _tuning(line: Line) -> str:
    cost = line.cost
    text = f"<b>{duration(cost.tuning_cpu)}</b>" if math.isfinite(cost.tuning_cpu) else "–"
    if math.isfinite(cost.ratio) and line.kind != "compared":
        text += f"<span>{number(cost.ratio)} ×</span>"
    if math.isfinite(cost.sampling_cpu):
        text += f"<span>a clip {duration(cost.sampling_cpu)}</span>"
    return f'<td class="number">{text}</td>'


def cost_table(group: Group) -> str:
    """Medians of wall and processor seconds of tuning and of a clip, the peak, and the stages."""
    on_gpu = any(math.isfinite(line.cost.peak_gpu_mib) for line in group.lines)
    rows = []
    for line in group.lines:
        cost = line.cost
        if not cost.stages:
            continue
        stages = ", ".join(f"{name} {number(cpu, 1)}" for name, (_, cpu) in cost.stages.items())
        cells = [number(cost.tuning_cpu, 1), number(cost.ratio), number(cost.tuning, 1)]
        peaks = [number(cost.peak_mib, 0), *([number(cost.peak_gpu_mib, 0)] if on_gpu else [])]
        cells += [number(cost.sampling_cpu, 1), number(cost.sampling, 1), *peaks, stages]
        rows.append(row(line.method, cells))
    heads = ["method", "tuning, processor s", "ratio", "tuning, wall s", "a clip, processor s"]
    heads += ["a clip, wall s", "peak memory, MiB", *(["of the GPU, MiB"] if on_gpu else [])]
    return table([*heads, "processor s of the stages"], rows)


def case_table(group: Group, score: Score) -> str:
    """A row for each case, a column for each method that has any; click a head to sort."""
    values = group.values[score.name]
    methods = [
        line.method
        for line in group.lines
        if values[line.method] and (line.kind != "control" or line.method == "base")
    ]
    cases = sorted({case for method in methods for case in values[method]})
    rows = [row(case, (number(values[m].get(case, math.nan)) for m in methods)) for case in cases]
    return table(["case", *methods], rows).replace("<table>", '<table class="sortable">', 1)


def verdicts(group: Group, summary: Summary) -> str:
    """For each headline score what can be said of the method compared with and each baseline."""
    rivals = [line for line in group.lines if line.kind == "baseline" or line.method == "base"]
    items = []
    for score in group.measured(headline=True):
        if said := _said(summary, rivals, score):
            items.append(f"<li><b>{escape(score.label)}</b>: {escape(said)}.</li>")
    ablations = [line for line in group.lines if line.kind == "ablation"]
    main = main_score(group, summary.against)
    if said := _said(summary, ablations, main):
        items.append(f"<li><b>Ablations, {escape(main.label)}</b>: {escape(said)}.</li>")
    return f'<ul class="verdicts">{"".join(items)}</ul>'


def _said(summary: Summary, lines: Sequence[Line], score: Score) -> str:
    """What the intervals say of some methods, in words."""
    found: dict[str, list[str]] = {"worse": [], "tie": [], "better": [], "few": []}
    for line in lines:
        difference = line.figures[score.name].difference
        if difference:
            found[difference.verdict].append(short(line.method))
    name = short(summary.against)
    words = {
        "worse": f"{name} is better than",
        "tie": "a tie with",
        "better": f"{name} is worse than",
        "few": "too few common cases to tell from",
    }
    return "; ".join(f"{words[verdict]} {', '.join(of)}" for verdict, of in found.items() if of)
