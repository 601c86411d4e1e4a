"""The sections about the run itself: heads, losses, frame schedule, time and memory, how to do it again."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
from pathlib import Path

import numpy as np
import torch

from fym import positions
from fym.report import plots
from fym.report.markup import duration, escape, facts, missing, number, row, table
from fym.report.rundir import Run

PACKAGES = ("fym", "torch", "diffusers", "transformers", "opencv-python-headless", "av")


def heads(run: Run) -> str:
    """The head map and what it was made with."""
    if run.heads is None:
        return missing("The head map")
    found = run.heads
    temporal, total = run.head_counts
    flips = np.count_nonzero(found.flips)
    svg = plots.to_svg(
        plots.head_map(found), "Ratio of temporal to spatial attention mass per layer and head"
    )
    pairs = {
        "temporal (T)": f"{temporal} of {total} heads",
        "spatial (S)": f"{total - temporal} of {total} heads",
        "rule": f"{found.rule}, threshold {found.threshold:g}, band {found.band:g} latent frames",
        "change side between seeds (*)": f"{flips} of {total} heads, {found.seeds} seeds",
        "noise levels": ", ".join(f"{sigma:g}" for sigma in found.sigmas),
        "model": found.model_id,
    }
    words = (
        "<p>ρ is the attention a head pays along time at one place, over what it pays within a frame. "
        "Temporal heads carry the motion adapter, spatial heads the appearance adapter.</p>"
    )
    return f'<div class="columns"><div class="plot">{svg}</div><div>{words}{facts(pairs)}</div></div>'


def training(run: Run) -> str:
    """The loss curves of the stages that have begun."""
    if not run.log:
        return missing("The loss curves")
    svg = plots.to_svg(plots.loss_curves(run.log), "Training loss of the spatial and the temporal stage")
    later = [missing(f"The {stage} stage") for stage in ("spatial", "temporal") if not run.steps_done(stage)]
    return f'<div class="plot">{svg}</div>{"".join(later)}'


def schedule(run: Run, frames: int) -> str:
    """Which of the clip's frames the temporal stage sees, at which time positions. frames: 0 = unknown."""
    count, picking = run.setting("temporal.sparse_frames", 0), run.setting("temporal.picking", "uniform")
    rule = run.setting("temporal.positions", "stride")
    if not frames or not count:
        return missing("The frame schedule")
    shares = f"{min(count, frames)} of {frames} frames a step"
    if whole := run.setting("temporal.whole_share", 0.0):
        shares += f", all of them in the last {whole:.0%} of the steps"
    words = f"{shares}; picking: {escape(picking)}, positions: {escape(rule)}."
    if picking != "uniform" or count > frames:  # other pickings differ from step to step or clip to clip
        return f"<p>{words}</p>"
    picked = positions.sparse_frames(frames, count)
    places = positions.time_positions(picked, frames, rule=rule)
    figure = plots.frame_schedule(frames, picked.tolist(), places.tolist())
    svg = plots.to_svg(figure, "All frames of the clip and those the temporal stage sees")
    why = "The figures below are the rotary embedding’s time positions, in latent frames of the full clip."
    return f'<p>{words} {why}</p><div class="plot">{svg}</div>'


def costs(run: Run) -> str:
    """Seconds and peak memory of each stage, as a picture and a table."""
    if not run.timings:
        return missing("Time and memory")
    svg = plots.to_svg(plots.stage_costs(run.timings), "Seconds and peak memory per stage")
    rows = []
    for name, cost in run.timings.items():
        steps = run.steps_done(name)
        cells = [
            duration(cost.get("seconds", math.nan)),
            str(steps) if steps else "–",
            number(cost.get("seconds_per_step", math.nan), 3),
            number(cost.get("peak_rss_mib", math.nan), 0),
        ]
        rows.append(row(name, cells))
    heads = ["stage", "time", "steps", "seconds a step", "peak memory, MiB"]
    return f'<div class="plot">{svg}</div>{table(heads, rows)}'


def reproduce(run: Run) -> str:
    """The command that does the run again, its configuration, and the versions."""
    pairs = {package: _version(package) for package in PACKAGES}
    pairs |= {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    pairs |= {"processor": f"{_processor()}, {torch.get_num_threads()} threads"}
    if not run.config_text:
        return missing("config.toml") + facts(pairs)
    command = shlex.join(
        ["fym", "train", "--config", str(run.folder / "config.toml"), "-o", f"{run.folder}-again"]
    )
    return (
        f"<pre><code>{escape(command)}</code></pre>"
        "<details><summary>config.toml: every option, resolved</summary>"
        f"<pre><code>{escape(run.config_text)}</code></pre></details>"
        f"<h3>Versions this page was written with</h3>{facts(pairs)}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
