"""One tuning stage: the optimiser loop, its state, checkpoints, and what stops it.

B batch, C,F',h,w latents. A step depends on nothing but the state, so an interrupted run that resumes is the
same run, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fym import memory
from fym.bands import Band
from fym.checkpoint import load_checkpoint, save_checkpoint
from fym.config import StageConfig, TuneConfig
from fym.console import Console
from fym.errors import UserError
from fym.families.base import AttentionControl, Family
from fym.losses import logged_terms, tuning_loss
from fym.ranks import ALONE, Ranks
from fym.runlog import StepLog
from fym.state import TuningState
from fym.stopping import Stopped, asked_between_steps


class Sample(NamedTuple):
    """What one step learns from."""

    latents: Tensor  # (B,C,F',h,w)
    positions: Tensor | None  # (F',) time positions, None = 0, 1, 2, ...
    text: Tensor  # (1,L,d_text)


Draw = Callable[[torch.Generator, int, int], Sample]


@dataclass(frozen=True)
class Stage:
    """A stage's data and settings. draw(generator, B, step) gives the samples, at most B, of step 1, 2, ...

    The last `whole_steps` steps draw the whole clip.
    """

    name: str
    settings: StageConfig
    tune: TuneConfig
    draw: Draw
    motion_weight: float = 0.0
    debias: bool = False
    lowest_noise: float = 0.0
    whole_steps: int = 0


def run_stage(
    family: Family,
    stage: Stage,
    state: TuningState,
    *,
    folder: Path,
    log: StepLog | None,
    console: Console,
    ranks: Ranks = ALONE,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains the adapters of a stage, which `state` has entered, from `state.step` on; returns the seconds of
    each step.

    The first of `ranks` writes checkpoints to `folder` in the run directory. Raises UserError at a
    loss that is not finite (before the step is taken) and when a process is lost, and Stopped, after a
    checkpoint, when the run was asked to stop.
    """
    settings, tune = stage.settings, stage.tune
    assert state.optimizer is not None
    parameters = list(state.adapters[stage.name].parameters())
    seconds = []
    console.start_stage(stage.name, settings.steps)
    try:
        acting = [(adapter, 1.0) for adapter in state.acting]
        looked_at = folder.parent if ranks.first else None
        with family.attention(adapters=acting) as control, asked_between_steps(looked_at) as asked:
            memory.reset_peak(family.device)
            for step in range(state.step + 1, settings.steps + 1):
                started = time.perf_counter()
                sample = stage.draw(state.generator, settings.batch_size, step)
                control.time_positions = sample.positions
                figures = ranks.sum(_backward(family, stage, state.generator, sample, control, ranks))
                ranks.sum_gradients(parameters)
                norm = torch.nn.utils.clip_grad_norm_(parameters, tune.grad_clip or float("inf"))
                loss, grad_norm = figures[0], float(norm)
                if not abs(loss) < float("inf") or not grad_norm < float("inf"):
                    raise _not_finite(stage.name, step, folder)
                for group in state.optimizer.param_groups:
                    group["lr"] = settings.learning_rate * rate_factor(step, settings.steps, tune.decay)
                state.optimizer.step()
                state.optimizer.zero_grad(set_to_none=True)
                state.step = step
                seconds.append(time.perf_counter() - started)
                row = {
                    "loss": loss,
                    "loss_flow": figures[1],
                    "loss_motion": figures[2],
                    "grad_norm": grad_norm,
                    "seconds": round(seconds[-1], 5),
                    **memory.peak(family.device),
                }
                if log is not None:
                    log.write({"stage": stage.name, "step": step, **row})
                console.step(stage.name, step, row)
                stop = ranks.most(asked())
                if ranks.first and (step % tune.checkpoint_every == 0 or step == settings.steps or stop):
                    save_checkpoint(folder, state.checkpoint(), keep=tune.keep)
                if stop:
                    ranks.wait()  # a launcher ends all processes when one of them ends
                    raise Stopped(stop)
                if after_step is not None:
                    after_step(step)
    finally:
        console.end_stage()
    return seconds


def rate_factor(step: int, steps: int, decay: float) -> float:
    """Share of the learning rate at `step` of 1 ... `steps`: 1, falling to 0 over the last share `decay`."""
    return min(1.0, (steps - step + 1) / (decay * steps)) if decay else 1.0


def predict_share(
    family: Family,
    control: AttentionControl,
    band: Band | None,
    noisy: Tensor,
    timestep: Tensor,
    text: Tensor,
) -> Tensor:
    """The prediction for noisy latents (B,C,F',h,w), of which this process computes `band`, if any."""
    control.band = band
    if band is None:
        return family.predict(noisy, timestep, text)
    return band.whole(family.predict(band.of(noisy), timestep, text))


def _backward(
    family: Family,
    stage: Stage,
    generator: torch.Generator,
    sample: Sample,
    control: AttentionControl,
    ranks: Ranks,
) -> tuple[float, float, float]:
    """Gradients of this process's part of the loss of one noisy batch; that part, and of its two terms.

    The loss is a mean over the samples, so the parts of all processes add up to it, and so do gradients. All
    random numbers are drawn on the CPU, by every process for all samples.
    """
    schedule, latents = family.schedule, sample.latents
    sigma = schedule.draw(
        len(latents), generator, stage.tune.noise, max(stage.lowest_noise, family.lowest_noise)
    )
    noise = torch.randn(latents.shape, generator=generator)
    anchor = int(torch.randint(latents.shape[2], (1,), generator=generator)) if stage.debias else None
    mine, band = ranks.share(stage.name, len(latents), partial(family.band_axis, latents))
    part = (mine.stop - mine.start) / len(latents)
    latents, noise, sigma = latents[mine], noise[mine].to(latents.device), sigma[mine].to(latents.device)
    noisy, target = schedule.add_noise(latents, noise, sigma), schedule.target(latents, noise, sigma)
    weight = schedule.weight(sigma, stage.tune.weighting)
    pred = predict_share(family, control, band, noisy, schedule.timestep(sigma), sample.text)
    loss = tuning_loss(pred, target, weight, motion_weight=stage.motion_weight, anchor=anchor)
    if part != 1:
        loss = loss * part
    loss.backward()
    flow, motion = logged_terms(pred.detach(), target, weight)
    if band is not None:  # each of its processes has the loss of the whole
        part, loss = part / band.count, loss / band.count
    return float(loss.detach()), flow * part, motion * part


def _not_finite(stage: str, step: int, folder: Path) -> UserError:
    kept = load_checkpoint(folder)
    where = f"{kept.record['stage']} step {kept.record['step']}" if kept is not None else "none"
    return UserError(
        f"The loss is not a number at {stage} step {step}",
        f"the tuning diverged; the last good checkpoint is kept ({where})",
        f"Use a smaller --set {stage}.learning_rate or --dtype float32, with --fresh",
    )
