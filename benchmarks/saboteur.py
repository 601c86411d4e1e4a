"""SIGKILL at a chosen point of a chosen write of `fym.files`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, BinaryIO

POINTS = ("made", "half written", "written", "synced", "renamed")  # of the temporary file of a write


class Saboteur:
    """Stands for `os` in fym.files: counts what is written, and ends the process at one point of a write."""

    def __init__(self, write: int = -1, point: int = 0) -> None:
        self.written: list[str] = []
        self.write, self.point = write, point

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def reach(self, point: int) -> None:
        if (len(self.written) - 1, point) == (self.write, self.point):
            os.kill(os.getpid(), signal.SIGKILL)

    def fdopen(self, handle: int, mode: str) -> Any:
        self.written.append(os.readlink(f"/proc/self/fd/{handle}"))
        self.reach(0)
        return _File(os.fdopen(handle, mode), self)

    def fsync(self, handle: int) -> None:
        self.reach(2)
        os.fsync(handle)
        self.reach(3)

    def replace(self, source: str, target: Path) -> None:
        os.replace(source, target)
        self.reach(4)


class _File:
    """A file whose bytes come in two halves."""

    def __init__(self, file: BinaryIO, saboteur: Saboteur) -> None:
        self._file, self._saboteur = file, saboteur

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._saboteur.reach(1)
        self._file.write(data[len(data) // 2 :])
