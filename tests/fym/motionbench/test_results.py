"""The results files: lines whole or absent whatever happens, none twice, compact, the latest counts."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fym.errors import UserError
from fym.motionbench.results import Results, compact, identity

# Writes lines as fast as it can until it is killed, from the number of lines that there are.
WRITER = """
import sys
from pathlib import Path
from fym.motionbench.results import Results
results = Results(Path(sys.argv[1]))
print("ready", flush=True)
for seed in range(10_000):
    results.add({"method": "fym", "case": sys.argv[2], "prompt": "x" * 500, "target": 0, "seed": seed,
                 "settings": "s", "model": "m", "reference": "r"})
"""


def row(seed: int = 0, **changes: object) -> dict[str, object]:
    made = {"method": "fym", "case": "object/a", "target": 0, "prompt": "a star", "seed": seed}
    return {**made, "settings": "s", "model": "m", "reference": "r", **changes}


def test_a_kill_at_any_moment_leaves_whole_lines_and_none_twice(tmp_path: Path) -> None:
    """Two writers at a time, both killed without warning, again and again."""
    results, rng = Results(tmp_path), random.Random(0)
    for _ in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), case],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )
            for case in ("object/a", "object/b")
        ]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.01, 0.1))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        text = results.path("fym").read_text()
        assert text.endswith("\n")
        rows = [json.loads(line) for line in text.splitlines()]
        assert len({identity(found) for found in rows}) == len(rows)
    assert {found["case"] for found in rows} == {"object/a", "object/b"}
    for case in ("object/a", "object/b"):  # and no seed was left out
        seeds = [found["seed"] for found in rows if found["case"] == case]
        assert seeds == list(range(len(seeds)))


def test_half_a_line_is_no_result_and_is_taken_away(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(row(0))
    whole = results.path("fym").read_bytes()
    for torn in (b'{"method": "fym", "ca', whole[:-1]):  # the second is complete but for its end
        results.path("fym").write_bytes(whole + torn)
        assert len(results.read("fym")) == 1
        results.add(row(1))
        assert [found["seed"] for found in results.read("fym")] == [0, 1]
        assert results.path("fym").read_bytes().startswith(whole)


def test_a_line_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch) -> None:
    results = Results(tmp_path)
    results.add(row(0))
    before = results.path("fym").read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:20]))
    with pytest.raises(UserError, match="No space left"):
        results.add(row(1))
    assert results.path("fym").read_bytes() == before


def test_the_same_clip_is_not_added_twice_and_other_settings_replace_it(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for settings in ("s", "s", "t"):
        results.add(row(settings=settings))
    assert len(results.done("fym")) == 2
    assert [found["settings"] for found in results.read("fym")] == ["t"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(row())
    with results.path("fym").open("a") as file:
        file.write("<<<<<<< main\n")
    with pytest.raises(UserError, match=r"fym.jsonl cannot be read: line 2 is no JSON"):
        results.read("fym")


def test_numbers_are_short_and_what_was_not_measured_is_null() -> None:
    made = compact({"a": 0.123456, "b": [math.nan, math.inf, -0.00001], "c": {"d": True, "e": 3}})
    assert json.dumps(made) == '{"a": 0.1235, "b": [null, null, 0.0], "c": {"d": true, "e": 3}}'


def test_failures_count_the_attempts_of_each_case(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for case in ("a", "b", "a"):
        results.add_failure({"method": "fym x.y=1", "case": case, "error": "no"})
    found = [(failure["case"], failure["attempt"]) for failure in results.failures("fym x.y=1")]
    assert found == [("a", 1), ("b", 1), ("a", 2)]
    assert results.methods() == []


def test_methods_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name in ("fym", "fym temporal.rank=16,temporal.steps=5", "base"):
        results.add(row(method=name))
    assert results.methods() == ["base", "fym", "fym temporal.rank=16,temporal.steps=5"]
    assert results.path("fym temporal.rank=16").name == "fym_temporal.rank=16.jsonl"
