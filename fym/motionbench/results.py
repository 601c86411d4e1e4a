"""The results of `fym motionbench run`: all that a report needs, and all that a run needs to go on.

    <results>/<method>.jsonl            a line for each clip, see below
    <results>/<method>.failures.jsonl   a line for each failed try of a case: case, attempt, error, traceback
    <results>/origins/<key>.toml        the settings of that key: everything clips depend on besides the model
    <results>/origins/<key>.json        the code of that key: versions of packages, metrics and the data set

A line is whole or not there, and is never written twice for the same clip. One line, a JSON object:

    method, case, category, part, split   as the data set names them
    target, prompt, seed    number of the case's target, its prompt, the seed of sampling
    settings, code          keys of origins/
    model, reference        first digits of the model's hash ("" without one) and of the reference's frames
    exact                   rendered cases only, see `fym.motionbench.exact`: cosine, right, leaked, ...
    metrics                 value of each metric of `fym.motionbench.metrics`, null where it is not measured
    shuffled                means over other cases' references of the same category in place of its own
    cost                    {stage: [seconds, processor seconds, peak MiB of the process]}; the stages of
                            tuning are those of the case and the same in its lines, "sample" is the clip's

Values are rounded to four digits. All but `cost` depends on nothing but what the line names: it is the same
whoever computed it. When settings, model or reference change, new lines follow the old ones; `read` gives
the latest of each clip. In failures the latest attempt tells why a case has no result.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fym.errors import UserError
from fym.files import write_file

DIGITS = 4
Row = dict[str, Any]


class Results:
    """A results folder; every method's file may be appended to by several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._done: dict[str, tuple[tuple[int, int], set[tuple[Any, ...]]]] = {}  # with the file's state

    def path(self, method: str) -> Path:
        return self.folder / f"{file_name(method)}.jsonl"

    def failures_path(self, method: str) -> Path:
        return self.folder / f"{file_name(method)}.failures.jsonl"

    def methods(self) -> list[str]:
        """Names of the methods that have results, in alphabetical order."""
        files = [p for p in self.folder.glob("*.jsonl") if not p.name.endswith(".failures.jsonl")]
        return sorted({row["method"] for p in files for row in _rows(p)[:1]})

    def read(self, method: str) -> list[Row]:
        """The latest line of each clip, in the order of case, target and seed."""
        latest = {(row["case"], row["target"], row["seed"]): row for row in _rows(self.path(method))}
        return [latest[key] for key in sorted(latest)]

    def done(self, method: str) -> set[tuple[Any, ...]]:
        """`identity` of every clip that has a line."""
        path = self.path(method)
        state = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)
        if self._done.get(method, ((-1, -1), set()))[0] != state:
            self._done[method] = (state, {identity(row) for row in _rows(path)})
        return self._done[method][1]

    def failures(self, method: str) -> list[Row]:
        return _rows(self.failures_path(method))

    def add(self, row: Row) -> None:
        """Appends a clip's line unless there is one."""
        with _appending(self.path(row["method"])) as (rows, append):
            if identity(row) not in {identity(other) for other in rows}:
                append(row)

    def add_failure(self, row: Row) -> None:
        """Appends a failed try; its attempt is one more than that of the case's last failure."""
        with _appending(self.failures_path(row["method"])) as (rows, append):
            before = [other["attempt"] for other in rows if other["case"] == row["case"]]
            append({**row, "attempt": max(before, default=0) + 1})

    def add_origin(self, name: str, text: str) -> None:
        """Keeps what a key stands for; the name tells the content."""
        path = self.folder / "origins" / name
        if not path.exists():
            write_file(path, text)


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two lines results of the same clip."""
    return tuple(row[name] for name in ("case", "prompt", "seed", "settings", "model", "reference"))


def file_name(method: str) -> str:
    """A method's name without what a file name cannot hold."""
    return "".join(c if c.isalnum() or c in "-_.,=" else "_" for c in method)


def compact(value: Any) -> Any:
    """Numbers rounded, what is not finite as None, throughout nested values."""
    if isinstance(value, Mapping):
        return {key: compact(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [compact(inner) for inner in value]
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0 if math.isfinite(value) else None  # + 0.0: no minus zero
    return value


@contextmanager
def _appending(path: Path) -> Iterator[tuple[list[Row], Any]]:
    """The lines there are and a function that appends one, alone among all processes.

    What a killed process left of a line is taken away first. A line goes out in one write and is synced;
    where that fails, the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        end = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(handle, end)

        def append(row: Row) -> None:
            line = json.dumps(compact(row), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(28, os.strerror(28))
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, end)
                raise UserError(
                    f"{path} cannot be written", str(error.strerror), "Free some space"
                ) from error

        yield _rows(path), append
    finally:
        os.close(handle)  # and with it the lock


def _rows(path: Path) -> list[Row]:
    """The whole lines of a file; half a line at its end is none."""
    text = path.read_bytes() if path.is_file() else b""
    rows = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read", f"line {number} is no JSON ({error})", "Take that line out of it"
            ) from error
    return rows
