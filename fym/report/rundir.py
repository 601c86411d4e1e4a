"""Reading a run directory for its report. A run may be unfinished: what is missing is simply absent here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fym.errors import UserError
from fym.heads import HeadMap
from fym.options import tomllib

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sample:
    """One generated clip; kind "motion" (with the adapters, after `step` steps) or "base" (without)."""

    path: Path
    prompt: str
    seed: int
    kind: str
    step: int


@dataclass(frozen=True)
class Run:
    """What a run directory holds so far."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    heads: HeadMap | None
    log: list[dict[str, Any]]  # rows of train.jsonl, one per stage and step
    timings: dict[str, dict[str, float]]
    samples: list[Sample]
    scores: dict[str, dict[str, float]]  # file name -> name -> value, from scores.json
    definitions: dict[str, str]  # of those scores, by name
    reference: Path | None
    notes: list[str] = field(default_factory=list)  # files that are there and cannot be read

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of a dotted option name, e.g. `clip.prompt`."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def head_counts(self) -> tuple[int, int]:
        """How many heads are temporal, and how many there are."""
        kind = np.asarray(self.heads.kind) if self.heads is not None else np.zeros(0)
        return int((kind == 1).sum()), kind.size

    def steps_done(self, stage: str) -> int:
        """How many steps of a training stage the log holds."""
        return sum(row["stage"] == stage for row in self.log)


def read_run(folder: Path) -> Run:
    """Read a run directory, whole or unfinished. Broken files are named in `notes` and left out."""
    notes: list[str] = []

    def read(name: str, parse: Callable[[Path], Value], missing: Value) -> Value:
        path = folder / name
        if not path.exists():
            return missing
        try:
            return parse(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            notes.append(f"{name} cannot be read ({error})")
            return missing

    given: list[dict[str, Any]] = read("scores.json", lambda path: json.loads(path.read_text("utf-8")), [])
    no_samples: list[Sample] = []
    samples = read("samples/samples.json", lambda path: _samples(path, folder), no_samples)
    reference = folder / "reference.mp4"
    first = (
        reference if reference.exists() else next((s.path for s in samples if s.kind == "reference"), None)
    )
    return Run(
        folder=folder,
        config=read("config.toml", lambda path: tomllib.loads(path.read_text("utf-8")), {}),
        config_text=read("config.toml", lambda path: path.read_text("utf-8"), ""),
        heads=read("heads.json", HeadMap.load, None),
        log=read("train.jsonl", _log, []),
        timings=read("timings.json", lambda path: dict(json.loads(path.read_text("utf-8"))), {}),
        samples=[sample for sample in samples if sample.kind != "reference"],
        scores=_scores(given),
        definitions={row["name"]: row["definition"] for row in given if "definition" in row},
        reference=first,
        notes=list(dict.fromkeys(notes)),
    )


def _log(path: Path) -> list[dict[str, Any]]:
    """Rows by stage and step. A resumed run may repeat steps (the last one counts) and end in a half line."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["stage"], int(row["step"])] = row
    order = {stage: number for number, stage in enumerate(dict.fromkeys(stage for stage, _ in rows))}
    return [rows[key] for key in sorted(rows, key=lambda key: (order[key[0]], key[1]))]


def _samples(path: Path, folder: Path) -> list[Sample]:
    return [
        Sample(
            _inside(folder, row["file"]),
            row["prompt"],
            int(row["seed"]),
            row["kind"],
            int(row.get("step", 0)),
        )
        for row in json.loads(path.read_text("utf-8"))
    ]


def _inside(folder: Path, name: str) -> Path:
    """samples.json may name files from the run directory or from its own folder."""
    return folder / name if (folder / name).exists() else folder / "samples" / Path(name).name


def _scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        scores.setdefault(Path(row["file"]).name, {})[row["name"]] = float(row["value"])
    return scores
