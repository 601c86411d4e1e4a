"""What the stages of a run will take: a few steps of each on copies, of which the run itself sees nothing."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fym import memory
from fym.config import Config
from fym.console import QuietConsole, duration
from fym.families import Family
from fym.plan import Table
from fym.ranks import ALONE, Ranks
from fym.stage import Stage, run_stage
from fym.state import TuningState

TRIAL_STEPS = 3  # the first pays for warming up and does not count


@dataclass(frozen=True)
class Estimate:
    """Of the steps that a stage has left. peak: as `memory.peak` gives it, optimiser and all."""

    stage: str
    steps: int
    seconds_per_step: float
    peak: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.steps * self.seconds_per_step


def estimate(
    family: Family, stage: Stage, state: TuningState, config: Config, ranks: Ranks = ALONE
) -> Estimate | None:
    """Runs TRIAL_STEPS steps of each kind the stage has left, at learning rate 0; None if it has nothing to
    do or to train."""
    last = stage.settings.steps
    left = last - (state.step if stage.name == state.stage else 0)
    whole = min(stage.whole_steps, left)
    kinds = [(steps, at) for steps, at in ((left - whole, 1), (whole, last)) if steps > 0]
    trial = TuningState(
        torch.Generator().manual_seed(config.tune.seed), state.identity, copy.deepcopy(state.adapters)
    )
    trial.enter(stage.name, config)
    if not kinds or trial.optimizer is None:
        return None
    tried = []
    for _, at in kinds:
        trial.step = 0
        tried.append(_try(family, stage, trial, at, ranks))
    total = sum(steps * seconds for (steps, _), (seconds, _) in zip(kinds, tried, strict=True))
    peak = {name: max(each[name] for _, each in tried) for name in tried[0][1]}
    return Estimate(stage.name, left, total / left, peak)


def _try(
    family: Family, stage: Stage, trial: TuningState, at: int, ranks: Ranks
) -> tuple[float, dict[str, float]]:
    """(seconds of a step, peak memory) of steps that draw what step `at` of the stage does."""
    still = replace(
        stage,
        settings=replace(stage.settings, steps=TRIAL_STEPS, learning_rate=0.0),
        draw=lambda generator, batch, step: stage.draw(generator, batch, at),
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        seconds = run_stage(
            family, still, trial, folder=checkpoints, log=None, console=QuietConsole(), ranks=ranks
        )
    return statistics.median(seconds[1:]), memory.peak(family.device)


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """For the first screen."""
    rows = [(made.stage, _line(made)) for made in estimates]
    rows.append(("in all", duration(sum(made.seconds for made in estimates))))
    return f"Estimate, from {TRIAL_STEPS - 1} steps of a stage", rows


def _line(made: Estimate) -> str:
    peak = f"{made.peak['rss_mib']:.0f} MiB"
    if "gpu_mib" in made.peak:
        peak += f", GPU {made.peak['gpu_mib']:.0f} MiB"
    return f"{made.seconds_per_step:.3g} s/step, {duration(made.seconds)} for {made.steps} steps, peak {peak}"
