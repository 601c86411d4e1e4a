"""Small pieces of markup shared by the page's sections; what is not markup is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping

NOT_YET = "not there yet"


def escape(text: object) -> str:
    """Text made safe for element content and attribute values."""
    return html.escape(str(text), quote=True)


def missing(what: str) -> str:
    """The box that stands where a part of a run is still to come."""
    return f'<p class="missing">{escape(what)}: {NOT_YET}.</p>'


def number(value: float, digits: int = 2) -> str:
    """A figure for reading, zero without a sign; a dash where there is none."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float, digits: int = 2) -> str:
    """A difference for reading: its sign is always there."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds as `12.3 s` or `3 min 05 s`."""
    if not math.isfinite(seconds):
        return number(seconds)
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def facts(pairs: Mapping[str, str]) -> str:
    """A list of names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table whose first column is text and the others are figures; rows as made by `row`."""
    first, *others = heads
    header = f"<th>{escape(first)}</th>" + "".join(
        f'<th class="number">{escape(name)}</th>' for name in others
    )
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(rows)}</table></div>'


def row(label: str, cells: Iterable[str], css: str = "") -> str:
    """A table row: its text and its figures, all escaped."""
    figures = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    return f'<tr class="{css}"><td>{escape(label)}</td>{figures}</tr>'
