"""Runs the rows that are asked for, prints them as they come, and writes everything down as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.table import Table

from fym import memory
from fym.bench.computed import Step, training_steps
from fym.bench.floor import copy_bandwidth
from fym.bench.measure import keep_freed_memory
from fym.bench.table import HEADER, Row, markdown, row_of
from fym.bench.targets import GROUPS, Options
from fym.environment import environment
from fym.errors import UserError
from fym.files import write_file

PACKAGES = ("torch", "diffusers", "peft", "transformers", "fym")
WIDE = 200  # columns
Say = Callable[[str], None]


def measure(options: Options, only: Sequence[str], say: Say) -> dict[str, Any]:
    """The rows of the groups in `only` (all if empty), with the machine they were measured on."""
    unknown = sorted(set(only) - set(GROUPS))
    if unknown:
        raise UserError(
            f"There is no row {', '.join(unknown)}", f"known are {', '.join(GROUPS)}", "Name one of these"
        )
    started, rows = time.monotonic(), []
    kept = not options.stock_malloc and keep_freed_memory()
    torch.manual_seed(0)
    for name in only or GROUPS:
        say(f"{time.monotonic() - started:5.0f} s  {name}")
        memory.reset_peak(torch.device("cpu"))
        made = GROUPS[name](options)
        peak = memory.peak(torch.device("cpu"))["rss_mib"]
        for row in made:
            row.detail["peak_rss_mib"] = peak
        rows += made
    say(f"{time.monotonic() - started:5.0f} s  done")
    about = {
        **machine(),
        "malloc": "keeps freed memory" if kept else "as it comes",
        "copy_gb_per_s": round(copy_bandwidth() / 1e9, 1),
    }
    result = {"machine": about, "rounds": options.rounds, "quick": options.quick}
    return {**result, "seconds": round(time.monotonic() - started), "rows": [row.as_dict() for row in rows]}


def compute(say: Say) -> dict[str, Any]:
    """Memory and FLOPs of the true models, from shapes alone."""
    steps = []
    for step in training_steps():
        say(f"computed: {step.model}, {step.frames} frames of {step.height} × {step.width}, {step.side}")
        steps.append(step.__dict__)
    return {"machine": machine(), "computed": steps}


def machine() -> dict[str, Any]:
    """When and on what: without it no figure means anything."""
    found = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{name: found[name] for name in ("cpu", "threads", "memory_gib", "python")},
        "versions": {name: found["versions"][name] for name in PACKAGES},
        "kernels": found["kernels"],
    }


def rows_of(result: dict[str, Any]) -> list[Row]:
    return [row_of(row) for row in result.get("rows", [])]


def summary(result: dict[str, Any]) -> str:
    """One line: the machine, and how many rows reach what they must."""
    about, rows = result["machine"], rows_of(result)
    goals = [row for row in rows if row.goals]
    reached = sum(row.reached in ("yes", "aim") for row in goals)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"{about['cpu']}, {about['threads']} threads, {versions}, {about['date']}"
    if rows:
        text += f"; large copy {about['copy_gb_per_s']} GB/s; malloc {about['malloc']}"
        text += f"; medians of {result['rounds']} rounds"
        text += f"; {reached} of {len(goals)} rows reach what they must"
    return text + ("; --quick: small shapes, the figures mean nothing" if result.get("quick") else "")


def computed_markdown(steps: Sequence[dict[str, Any]]) -> str:
    """The computed figures, a line for each model and clip."""
    lines = [
        "| model | clip | tokens | | weights, optimiser GB | peak GB | of naive | PFLOP per step |",
        "|" + " --- |" * 8,
    ]
    for step in (Step(**step) for step in steps):
        base = next(
            Step(**other)
            for other in steps
            if other["side"] == "naive"
            and other["recompute"] == "none"
            and all(other[key] == getattr(step, key) for key in ("model", "frames", "height"))
        )
        how = {"none": "", "ffn": ", FFN recomputed", "block": ", checkpointing"}[step.recompute]
        lines.append(
            f"| {step.model} | {step.frames} frames, {step.width}×{step.height} | {step.tokens} "
            f"| {step.side}{how} | {step.weights / 1e9:.1f} | {step.peak / 1e9:.1f} "
            f"| {step.peak / base.peak:.2f} | {step.flops / 1e15:.3f} |"
        )
    return "\n".join(lines)


def as_markdown(result: dict[str, Any]) -> str:
    """All tables of a result, for a document."""
    parts = []
    if result.get("rows"):
        parts.append(markdown(rows_of(result)))
    if result.get("computed"):
        parts.append("Computed from shapes, not measured:\n\n" + computed_markdown(result["computed"]))
    return "\n\n".join([*parts, summary(result)])


def show(result: dict[str, Any]) -> None:
    """The table on the screen: as wide as it needs to be where the output is no terminal."""
    console = RichConsole(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    rows = rows_of(result)
    if rows:
        table = Table(box=SIMPLE)
        for name in HEADER:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row.cells())
        console.print(table)
        for row in rows:
            if row.note:
                console.print(f"{row.what}: {row.note}")
    if result.get("computed"):
        console.print(computed_markdown(result["computed"]))
    console.print(summary(result))


def merged(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """`result` with the parts that the file at `path` has and it lacks: rows, or computed figures."""
    if not path.exists():
        return result
    before = load(path)
    if "rows" in before and "rows" not in result:  # what is computed depends on no machine
        return {**before, "computed": result["computed"]}
    return {**{key: before[key] for key in ("computed",) if key in before}, **result}


def save(path: Path, result: dict[str, Any]) -> None:
    write_file(path, json.dumps(result, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text("utf-8"))
        return dict(loaded)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read", str(error), "Make it with fym bench --json") from error
