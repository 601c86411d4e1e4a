"""What a run writes down as it goes: train.jsonl, a row per step, and timings.json, an entry per part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fym import memory
from fym.files import DiskFullError, explained, write_file
from fym.trackers import TensorBoard

STAGES = ("spatial", "temporal")


class StepLog:
    """train.jsonl. Rows after the point where a run resumes are dropped, so that none is there twice."""

    def __init__(
        self, path: Path, stage: str = STAGES[0], step: int = 0, tracker: TensorBoard | None = None
    ) -> None:
        """Keeps the rows up to `step` of `stage`; everything later will be written again. tracker: gets
        every row as well."""
        kept = [
            row
            for row in _rows(path)
            if (STAGES.index(row["stage"]), row["step"]) <= (STAGES.index(stage), step)
        ]
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._path, self._tracker = path, tracker
        if tracker is not None:
            tracker.replay(kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        with explained(self._path):
            self._file.write(json.dumps(dict(row)) + "\n")
            self._file.flush()
        if self._tracker is not None:
            self._tracker.write(row)

    def close(self) -> None:
        with explained(self._path):  # rows that a full disk has not taken are tried once more
            self._file.close()
        if self._tracker is not None:
            self._tracker.close()


class Timings:
    """timings.json: {part: {"seconds", "peak_rss_mib", ...}}. A part done in several goes adds up."""

    def __init__(self, path: Path, device: torch.device, *, writes: bool = True) -> None:
        self.path, self.device, self.writes = path, device, writes
        try:
            self.entries: dict[str, dict[str, float]] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            self.entries = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[dict[str, float]]:
        """Times the block, also one that ends in an exception; further figures can be put into the dict."""
        extra: dict[str, float] = {}
        cost: dict[str, float] = {}
        try:
            with spent(self.device) as cost:
                yield extra
        except BaseException:
            with suppress(DiskFullError):  # which would hide what ended the block, a full disk often
                self._add(part, extra, cost)
            raise
        self._add(part, extra, cost)

    def _add(self, part: str, extra: Mapping[str, float], cost: Mapping[str, float]) -> None:
        before = self.entries.get(part, {})
        entry = {**before, **extra}
        for name, value in cost.items():
            had = before.get(name, 0.0)
            entry[name] = max(had, value) if name.startswith("peak_") else had + value
        self.entries[part] = {name: round(value, 4) for name, value in entry.items()}
        if self.writes:
            write_file(self.path, json.dumps(self.entries, indent=1) + "\n")


@contextmanager
def spent(device: torch.device) -> Iterator[dict[str, float]]:
    """What the block costs, filled in at its end: "seconds", "cpu_seconds" of the process, "peak_rss_mib"
    and, on a GPU, "peak_gpu_mib"."""
    memory.reset_peak(device)
    started, processor = time.perf_counter(), time.process_time()
    cost: dict[str, float] = {}
    try:
        yield cost
    finally:
        cost["seconds"] = time.perf_counter() - started
        cost["cpu_seconds"] = time.process_time() - processor
        cost |= {f"peak_{name}": value for name, value in memory.peak(device).items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are whole; a killed process may leave half a line at the end."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
