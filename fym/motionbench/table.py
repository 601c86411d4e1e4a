"""The certificate as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fym.motionbench.certify import Verdict
from fym.motionbench.metrics import Metric

SEEN, PARTLY, BLIND = "yes", "some", "–"


def definitions(metrics: Sequence[Metric]) -> str:
    """Name, definition, unit and best value of each metric."""
    lines = ["| metric | definition | unit | best | called different beyond |", "|---|---|---|---|---|"]
    for m in metrics:
        lines.append(
            f"| `{m.name}` v{m.version} | {m.definition} | {m.unit} | {m.best:g} | {m.tolerance:.2g} |"
        )
    return "\n".join(lines)


def defect_table(verdicts: Sequence[Verdict]) -> str:
    """Which metric sees which defect in all (yes) or some seeds; claimed ones are bold."""
    defects = list(dict.fromkeys(defect for verdict in verdicts for defect in verdict.seen))
    head = ["metric", *defects, "itself perfect", "false alarms", "certified"]
    lines = [_line(head), _line(["---"] * len(head))]
    for verdict in verdicts:
        metric = verdict.metric
        cells = [_cell(verdict.seen[defect], defect in metric.claims) for defect in defects]
        itself = ("yes" if verdict.itself_perfect else "no") if metric.paired else ""
        passed = "yes" if verdict.passed else "**no**"
        lines.append(_line([f"`{metric.name}`", *cells, itself, f"{verdict.false_alarms:.0%}", passed]))
    return "\n".join(lines)


def error_table(verdicts: Sequence[Verdict]) -> str:
    """How far each metric of tracks is from its value on true tracks."""
    lines = [_line(["metric", "median error", "90 % of errors below", "clips"]), _line(["---"] * 4)]
    for verdict in verdicts:
        if any(verdict.errors):  # all zero: not a metric of tracks
            median, most = np.quantile(verdict.errors, [0.5, 0.9])
            row = [f"`{verdict.metric.name}`", f"{median:.3f}", f"{most:.3f}", str(len(verdict.errors))]
            lines.append(_line(row))
    return "\n".join(lines)


def _cell(share: float, claimed: bool) -> str:
    text = SEEN if share == 1 else PARTLY if share else BLIND
    return f"**{text}**" if claimed else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
