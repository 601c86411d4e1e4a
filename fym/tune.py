"""The whole tuning: classify the heads, tune the spatial ones, then the temporal ones, hand over the motion.

Running it again on the same run directory goes on where it stopped; every random number comes from one
generator seeded by tune.seed, whose state is part of each checkpoint. Under torchrun several processes do
the steps together; the first one does the rest, and alone writes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fym.checkpoint import load_checkpoint, save_checkpoint
from fym.checks import run_directory
from fym.config import Config, TemporalConfig, to_toml
from fym.console import Console
from fym.estimate import estimate, estimate_table
from fym.families import Family, load_family
from fym.families.loading import default_dtype
from fym.families.skeleton import skeleton
from fym.files import check_writable, write_file
from fym.fit import fitting
from fym.heads import HeadMap, classify
from fym.material import Material, SparseClip, encodes_later, read_reference
from fym.motion_file import MotionFile, load_motion_file, save_motion_file
from fym.plan import Plan, Table, heads_table
from fym.positions import whole_clips
from fym.ranks import Ranks, check_shares, launched
from fym.runlog import STAGES, StepLog, Timings
from fym.samples import Samples
from fym.stage import Draw, Sample, Stage, run_stage
from fym.state import TuningState, begin, check_same_run
from fym.video import Clip, write_clip


@dataclass(frozen=True)
class TrainResult:
    """Where things are, and which heads were tuned."""

    run_dir: Path
    motion_file: Path
    report: Path
    head_map: HeadMap


def plan(config: Config, gpu: str = "") -> list[Table]:
    """What `train` would do, what it takes on this machine or on a GPU of fym.gpus, and what fits.

    Reads the clip and the model's configuration, no weights; writes nothing."""
    dtype = config.model.dtype if config.model.dtype != "auto" else "bfloat16" if gpu else ""
    family = skeleton(config.model.path, dtype or default_dtype(config.model.device))
    clip = read_reference(config.clip, family)
    tables = Plan.of(config, run_directory(config), family, clip).tables()
    return [*tables, *fitting(family, config, clip, gpu)]


def train(config: Config, run_dir: Path, *, console: Console, family: Family | None = None) -> TrainResult:
    """The whole run, resumed where `run_dir` holds a part of it. family: the model, if it is loaded already.

    Raises UserError: a bad clip or model, another run in the directory, a diverging loss, no temporal head;
    KeyboardInterrupt after Ctrl-C, with a checkpoint written.
    """
    run_dir, ranks = Path(run_dir), launched()
    check_shares(config, ranks)
    check_same_run(config, run_dir)
    if ranks.first:
        check_writable(run_dir)
        write_file(run_dir / "config.toml", to_toml(config))
    family = family or _load(config)
    family.recompute = config.tune.recompute
    clip = read_reference(config.clip, family)
    for title, rows in Plan.of(config, run_dir, family, clip).tables():
        console.table(title, rows)
    timings = Timings(run_dir / "timings.json", family.device, writes=ranks.first)
    material = Material(family, clip, config.clip, run_dir / "cache", writes=ranks.first)
    samples = Samples(run_dir, config.generate, config.clip.prompt)
    with ranks.first_ahead():
        sparse = _prepare(material, config, run_dir, timings)
        if ranks.first:
            samples.encode(family)
        family.free_encoders(keep_vae=encodes_later(config.temporal))
        head_map = _classified(config, run_dir, family, material, timings, console, ranks)

    state, resumed = begin(config, run_dir, family, clip, head_map)
    ranks.wait()  # before the first one writes further checkpoints
    spatial, temporal = state.adapters["spatial"], state.adapters["temporal"]
    title, rows = heads_table(head_map, spatial, temporal)
    console.table(title, rows)
    if spatial.targets != config.tune.targets:
        console.info(f"{family.model_id} takes adapters on {', '.join(spatial.targets)} only")
    if resumed:
        console.info(f"going on after step {state.step} of the {state.stage} stage")
    stages = [_stage(name, config, material, sparse) for name in STAGES[STAGES.index(state.stage) :]]
    with timings.measure("estimate"):
        found = [estimate(family, stage, state, config, ranks) for stage in stages]
    if any(found):
        title, rows = estimate_table([made for made in found if made])
        console.table(title, rows)
    about = _about(config, family, clip, sparse)
    log = StepLog(run_dir / "train.jsonl", state.stage, state.step) if ranks.first else None
    try:
        if state.stage == "spatial":
            _tune(family, stages[0], state, run_dir, log, timings, console, ranks)
            state.enter("temporal", config)
            if ranks.first:
                save_checkpoint(run_dir / "checkpoints", state.checkpoint(), keep=config.tune.keep)
        if state.step < config.temporal.steps:

            def sample_now(step: int) -> None:
                if (
                    config.tune.sample_every
                    and step % config.tune.sample_every == 0 < config.temporal.steps - step
                ):
                    if ranks.first:
                        samples.make(family, MotionFile(temporal, spatial, about), step)
                        family.free_encoders(keep_vae=encodes_later(config.temporal))
                    ranks.wait()

            _tune(family, stages[-1], state, run_dir, log, timings, console, ranks, sample_now)
    finally:
        if log is not None:
            log.close()
    motion_path, report = run_dir / "motion.safetensors", run_dir / "report.html"
    if ranks.first:
        from fym.report import write_report

        about["norm_leak"] = _leak(family, state, sparse, material.text)
        leak = f"{about['norm_leak']:.2%}"
        console.info(f"the heads without an adapter change by {leak} through the common norm")
        save_motion_file(motion_path, temporal, spatial, about)
        with timings.measure("sample"):
            samples.make(family, load_motion_file(motion_path), config.temporal.steps)
        report = write_report(run_dir)
    ranks.wait()
    return TrainResult(run_dir, motion_path, report, head_map)


def classify_clip(config: Config, run_dir: Path, *, console: Console) -> HeadMap:
    """Stage 1 alone: heads.json and heads.png in `run_dir`."""
    family = _load(config)
    material = Material(family, read_reference(config.clip, family), config.clip, run_dir / "cache")
    timings = Timings(run_dir / "timings.json", family.device)
    return _classify(config, run_dir, family, material, timings, console)


def _load(config: Config) -> Family:
    model = config.model
    family = load_family(model.path, dtype=model.dtype, device=model.device)
    if model.vae == "tiled":
        family.tile_vae()
    return family


def _prepare(material: Material, config: Config, run_dir: Path, timings: Timings) -> SparseClip:
    """Encodes everything once and puts the clip, as the model sees it, beside the results."""
    with timings.measure("cache"):
        _ = material.text
        if config.temporal.recolour:
            _ = material.no_text
        sparse = SparseClip(material, config.temporal)
        _ = material.latents, material.frame_latents
    reference = run_dir / "reference.mp4"
    if not reference.exists():
        write_clip(reference, material.clip.frames, material.clip.fps)
    return sparse


def _classified(
    config: Config,
    run_dir: Path,
    family: Family,
    material: Material,
    timings: Timings,
    console: Console,
    ranks: Ranks,
) -> HeadMap:
    """The head map of the run that is resumed, or a new one."""
    path = run_dir / "heads.json"
    if not ranks.first or (path.exists() and load_checkpoint(run_dir / "checkpoints") is not None):
        return HeadMap.load(path)
    return _classify(config, run_dir, family, material, timings, console)


def _classify(
    config: Config, run_dir: Path, family: Family, material: Material, timings: Timings, console: Console
) -> HeadMap:
    from fym.report import plots

    passes = config.heads.seeds * len(config.heads.sigmas)
    with timings.measure("classify"):
        console.start_stage("classify", passes)
        head_map = classify(
            family,
            material.latents,
            material.text,
            config.heads,
            seed=config.tune.seed,
            progress=lambda done: console.step("classify", done, {}),
        )
        console.end_stage()
    head_map.save(run_dir / "heads.json")
    plots.save(plots.head_map(head_map), run_dir / "heads.png")
    return head_map


def _tune(
    family: Family,
    stage: Stage,
    state: TuningState,
    run_dir: Path,
    log: StepLog | None,
    timings: Timings,
    console: Console,
    ranks: Ranks,
    after_step: Callable[[int], None] | None = None,
) -> None:
    if state.optimizer is None or state.step >= stage.settings.steps:
        return
    folder = run_dir / "checkpoints"
    if ranks.first and state.step == 0 and stage.name == "spatial":
        save_checkpoint(folder, state.checkpoint(), keep=stage.tune.keep)
    with timings.measure(stage.name) as figures:
        seconds = run_stage(
            family,
            stage,
            state,
            folder=folder,
            log=log,
            console=console,
            ranks=ranks,
            after_step=after_step,
        )
        # The first step pays for warming up.
        figures["seconds_per_step"] = statistics.median(seconds[1:] or seconds)


def _stage(name: str, config: Config, material: Material, sparse: SparseClip) -> Stage:
    if name == "spatial":
        return Stage(name, config.spatial, config.tune, _frame_draw(material))
    settings = config.temporal
    draw = _clip_draw(sparse, settings)
    return Stage(
        name,
        settings,
        config.tune,
        draw,
        settings.motion_weight,
        settings.debias,
        settings.lowest_noise,
        settings.whole_steps,
    )


def _frame_draw(material: Material) -> Draw:
    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        index = torch.randint(material.num_frames, (batch,), generator=generator)
        latents = material.frame_latents[index.to(material.frame_latents.device)]
        return Sample(latents, None, material.text, ("spatial",))

    return draw


def _clip_draw(sparse: SparseClip, settings: TemporalConfig) -> Draw:
    """The clip with its caption and its look's adapter: picked frames, in the last `whole_steps` all of them.

    In a share `recolour` of the steps before, recoloured copies with neither caption nor adapter, so that
    nothing ties the motion to the look.
    """
    material, both = sparse.material, ("spatial", "temporal")

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        if step > settings.steps - settings.whole_steps:
            whole = material.latents
            clips = whole_clips(batch, settings.sparse_frames, whole.shape[1])
            return Sample(whole.expand(clips, -1, -1, -1, -1), None, material.text, both)
        if settings.recolour and torch.rand((), generator=generator) < settings.recolour:
            latents, positions = sparse.draw_recoloured(generator, batch)
            return Sample(latents, positions, material.no_text, ("temporal",))
        latents, positions = sparse.draw(generator)
        return Sample(latents.expand(batch, -1, -1, -1, -1), positions, material.text, both)

    return draw


def _about(config: Config, family: Family, clip: Clip, sparse: SparseClip) -> dict[str, Any]:
    """What the motion file says about itself."""
    frames, height, width, _ = clip.frames.shape
    return {
        "model_id": family.model_id,
        "model_hash": family.model_hash,
        "family": family.name,
        "layer_groups": list(family.layer_groups),
        "caption": config.clip.prompt,
        "clip_sha256": clip.sha256,
        "clip_start": config.clip.start,
        "clip_size": [frames, height, width],
        "clip_fps": clip.fps,
        "frames": sparse.frame_index,
        "positions": config.temporal.positions,
        "latents": config.temporal.latents,
        "lowest_noise": config.temporal.lowest_noise,
        "steps": [config.spatial.steps, config.temporal.steps],
        "seed": config.tune.seed,
    }


def _leak(family: Family, state: TuningState, sparse: SparseClip, text: Tensor) -> float:
    """Largest relative change, over layers, of queries and keys of heads that the temporal adapter leaves.

    Measured in the middle of the trained noise levels. 0 for families that normalise each head by itself.
    """
    generator = torch.Generator().manual_seed(0)
    latents, _ = sparse.draw(generator)
    sigma = torch.tensor([(1 + family.lowest_noise) / 2], device=latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = family.schedule.add_noise(latents[None], noise[None], sigma)
    adapters = [(state.adapters["temporal"], 1.0)]
    leaks = family.norm_leak(adapters, noisy, family.schedule.timestep(sigma), text)
    return max(max(pair) for pair in leaks)
