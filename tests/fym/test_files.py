"""Files are whole or not there, at whatever point their writer is killed."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from benchmarks.saboteur import POINTS, Saboteur
from fym import files


def _write_and_die(path: Path, point: int) -> None:
    files.os = Saboteur(1, point)
    files.write_file(path.with_name("first"), b"first")
    files.write_file(path, b"new" * 1000)


@pytest.mark.parametrize("point", range(len(POINTS)))
def test_killed_at_any_point_of_a_write(tmp_path, point):
    """The second write is hit; before the rename the old content stays, and what is left over can be told."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(path, point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    renamed = POINTS[point] == "renamed"
    assert path.read_bytes() == (b"new" * 1000 if renamed else b"old")
    assert (tmp_path / "first").read_bytes() == b"first"
    left = [part.stat().st_size for part in tmp_path.glob(".x.*.part")]
    assert left == [] if renamed else left in ([0], [1500], [3000])
    files.remove_parts(tmp_path)
    assert sorted(part.name for part in tmp_path.iterdir()) == ["first", "x"]
