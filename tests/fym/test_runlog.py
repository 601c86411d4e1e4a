"""The log of steps and the timings: no step twice, no half line, parts done in several goes add up."""

import contextlib
import json
import subprocess
import sys
import time

import torch

from fym.runlog import StepLog, Timings

CPU = torch.device("cpu")


def row(stage, step):
    return {"stage": stage, "step": step, "loss": 1.0}


def steps(path):
    return [(r["stage"], r["step"]) for r in map(json.loads, path.read_text().splitlines())]


def test_rows_after_the_point_of_resuming_are_dropped(tmp_path):
    path = tmp_path / "train.jsonl"
    log = StepLog(path)
    for stage in ("spatial", "temporal"):
        for step in (1, 2, 3):
            log.write(row(stage, step))
    log.close()
    with path.open("a") as file:
        file.write('{"stage": "temporal", "st')  # the process was killed here
    log = StepLog(path, "temporal", 1)
    log.write(row("temporal", 2))
    log.close()
    assert steps(path) == [("spatial", 1), ("spatial", 2), ("spatial", 3), ("temporal", 1), ("temporal", 2)]
    StepLog(path, "spatial", 2).close()
    assert steps(path) == [("spatial", 1), ("spatial", 2)]


def test_parts_add_up_over_several_goes_and_survive_errors(tmp_path):
    path = tmp_path / "timings.json"
    for _ in range(2):
        timings = Timings(path, CPU)
        with contextlib.suppress(KeyboardInterrupt), timings.measure("spatial") as figures:
            time.sleep(0.02)
            figures["seconds_per_step"] = 0.5
            raise KeyboardInterrupt
    entry = json.loads(path.read_text())["spatial"]
    assert 0.04 <= entry["seconds"] < 10 and entry["seconds_per_step"] == 0.5 and entry["peak_rss_mib"] > 10


PEAK = """
import torch
from fym import memory

cpu = torch.device("cpu")
memory.reset_peak(cpu)
before = memory.peak(cpu)["rss_mib"]
torch.ones(4 << 18)  # blocks of its size are not given back one by one from now on
blocks, between = [], []
for _ in range(64):
    blocks.append(torch.ones(1 << 20))
    between.append(torch.ones(1 << 10))
during = memory.peak(cpu)["rss_mib"]
del blocks
memory.reset_peak(cpu)
print(before, during, memory.peak(cpu)["rss_mib"])
"""


def test_peak_memory_sees_an_allocation_and_forgets_it_at_a_reset():
    """256 MiB come and go, between blocks that stay. In a process of its own: `fym bench` has its own keep
    freed memory."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert during >= before + 200
    assert after <= before + 50
