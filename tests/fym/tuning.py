"""Runs of the three stages on a tiny random model, and what to compare them by."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from fym import tune
from fym.console import QuietConsole

STEPS = 6  # of each stage
HEADS = [[0, 1, 0], [1, 0, 1]]  # kinds planted in most runs: 0 spatial, 1 temporal


class InterruptingConsole(QuietConsole):
    """Presses Ctrl-C, or does what else stops a run, after one step of a stage."""

    def __init__(self, stage, step, stop=lambda: signal.raise_signal(signal.SIGINT)):
        super().__init__()
        self.where, self.stop = (stage, step), stop

    def step(self, stage, step, row):
        super().step(stage, step, row)
        if (stage, step) == self.where:
            self.stop()


def run(config, folder, console=None):
    return tune.train(config, folder, console=console or QuietConsole())


def adapters_of(folder):
    return load_file(folder / "motion.safetensors"), load_file(folder / "spatial.safetensors")


def assert_same(one, other):
    for a, b in zip(adapters_of(one), adapters_of(other), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stopped_and_straight(config, folder):
    """The folder of a run that nothing stopped, after one that was stopped and resumed came out the same."""
    with pytest.raises(KeyboardInterrupt):
        run(config, folder / "stopped", InterruptingConsole("temporal", 2))
    run(config, folder / "stopped")
    run(config, folder / "straight")
    assert_same(folder / "stopped", folder / "straight")
    return folder / "straight"


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{k: row[k] for k in ("stage", "step", "loss", "loss_flow", "loss_motion")} for row in rows]
