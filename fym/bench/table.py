"""One row per thing measured: the sides, the ratios, what must be reached, and whether it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

HEADER = ("what", "ours", "naive", "compile", "floor", "ratios", "must reach (aim)", "reached")
SIGNS = {">=": operator.ge, "<=": operator.le}


class Goal(NamedTuple):
    """`quantity`, one of the row's ratios, held against `must` and, if there is one, `aim`."""

    quantity: str
    sign: str
    must: float
    aim: float | None = None

    def text(self) -> str:
        sign = {">=": "≥", "<=": "≤"}[self.sign]
        aim = "" if self.aim is None else f" ({number(self.aim, self.quantity)})"
        return f"{self.quantity} {sign} {number(self.must, self.quantity)}{aim}"

    def verdict(self, ratios: dict[str, float]) -> str:
        value, meets = ratios.get(self.quantity), SIGNS[self.sign]
        if value is None:
            return "not measured"
        if not meets(value, self.must):
            return "no"
        return "aim" if self.aim is not None and meets(value, self.aim) else "yes"


@dataclass
class Row:
    """sides: the median (or size) of ours, naive, compile and floor in `unit`; detail: all that was measured.

    All goals must be met.
    """

    name: str
    what: str
    unit: str
    sides: dict[str, float]
    ratios: dict[str, float]
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> str:
        """ "aim", "yes", "no", "not measured", or empty where there is no goal."""
        verdicts = [goal.verdict(self.ratios) for goal in self.goals]
        order = ("no", "not measured", "yes", "aim")
        ranked = sorted(verdicts, key=order.index)
        return ranked[0] if ranked else ""

    def cells(self) -> tuple[str, ...]:
        sides = [self._side(name) for name in ("ours", "naive", "compile", "floor")]
        ratios = ", ".join(f"{number(value, name)} {name}" for name, value in self.ratios.items())
        return self.what, *sides, ratios, ", ".join(goal.text() for goal in self.goals), self.reached

    def as_dict(self) -> dict[str, Any]:
        goals = [{**goal._asdict(), "verdict": goal.verdict(self.ratios)} for goal in self.goals]
        return {**self.__dict__, "goals": goals, "reached": self.reached}

    def _side(self, name: str) -> str:
        value = self.sides.get(name)
        if value is None:
            return "–"
        spread = self.detail.get(name, {}).get("spread")
        return f"{value:.3g} {self.unit}" + (f" ±{spread:.0%}" if spread else "")


def row_of(saved: dict[str, Any]) -> Row:
    """The row that `as_dict` was made of."""
    goals = [Goal(*(goal[name] for name in Goal._fields)) for goal in saved["goals"]]
    fields = {name: saved[name] for name in Row.__dataclass_fields__ if name != "goals"}
    return Row(**fields, goals=goals)


def number(value: float, quantity: str) -> str:
    if quantity.startswith(("of the copy", "longer")):
        return f"{value:.0%}"
    return f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """A table, and under it the notes."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    notes = [f"- {row.what}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
