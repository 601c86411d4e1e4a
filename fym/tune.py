"""The whole tuning: classify the heads, tune the spatial ones, then the temporal ones, hand over the motion.

Of several references of one motion each step takes one, drawn at random; the heads are judged by the mean.

Running it again on the same run directory goes on where it stopped; every random number comes from one
generator seeded by tune.seed, whose state is part of each checkpoint. Under torchrun several processes do
the steps together; the first one does the rest, and alone writes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fym.checkpoint import keep_newest, load_checkpoint, save_checkpoint
from fym.checks import run_directory
from fym.config import Config
from fym.config_file import to_toml
from fym.console import Console
from fym.draws import clip_draw, frame_draw, one_of
from fym.environment import record
from fym.estimate import estimate, estimate_table
from fym.families import Family, load_family
from fym.families.loading import default_dtype
from fym.families.skeleton import skeleton
from fym.files import check_writable, remove_parts, write_file
from fym.fit import fitting
from fym.gpus import Gpu
from fym.heads import HeadMap, classify, mean_map
from fym.looks import in_looks
from fym.material import Material, SparseClip, encodes_later, for_what_moves, read_references
from fym.motion_file import MotionFile, load_motion_file, save_motion_file
from fym.plan import Plan, Table, heads_table
from fym.ranks import Ranks, check_device, launched
from fym.runlog import STAGES, StepLog, Timings
from fym.samples import Samples
from fym.sharing import sharing_table
from fym.stage import Stage, run_stage
from fym.state import TuningState, begin, check_same_run
from fym.stills import in_scenes
from fym.stopping import remove_stop_file
from fym.trackers import open_tracker
from fym.video import Clip, write_clip


@dataclass(frozen=True)
class TrainResult:
    """Where things are, and which heads were tuned."""

    run_dir: Path
    motion_file: Path
    report: Path
    head_map: HeadMap


def plan(config: Config, gpu: Gpu | None = None, processes: int = 1) -> list[Table]:
    """What `train` would do, what it takes each of its processes on this machine or on a GPU of fym.gpus, and
    what fits.

    Reads the clip and the model's configuration, no weights; writes nothing."""
    dtype = config.model.dtype if config.model.dtype != "auto" else "bfloat16" if gpu else ""
    dtype = dtype or default_dtype(config.model.device)
    family = skeleton(config.model.path, dtype, config.model.quantise)
    clips = read_references(config.clip, family)
    config = for_what_moves(config, clips)
    elsewhere = gpu.name if gpu else ""
    tables = Plan.of(config, run_directory(config), family, clips, elsewhere).tables()
    return [*tables, *fitting(family, config, clips, gpu, processes)]


def train(config: Config, run_dir: Path, *, console: Console, family: Family | None = None) -> TrainResult:
    """The whole run, resumed where `run_dir` holds a part of it. family: the model, if it is loaded already.

    Raises UserError: a bad clip or model, another run in the directory, a diverging loss, no temporal head;
    Stopped (a KeyboardInterrupt) after Ctrl-C, SIGTERM or `touch RUN/stop`, with a checkpoint written.
    """
    run_dir, ranks = Path(run_dir), launched()
    check_device(config, ranks)
    check_same_run(config, run_dir)
    tracker = open_tracker(config.tune, run_dir)
    if ranks.first:
        check_writable(run_dir)
        remove_stop_file(run_dir)
        remove_parts(run_dir)
        write_file(run_dir / "config.toml", to_toml(config))
    family = family or _load(config)
    if config.model.shard:
        _shard(family, ranks, console)
    # What the first process does alone otherwise takes all of them where each has a part of the weights.
    acts = ranks.first or family.sharded
    for difference in record(run_dir, family.device, family.dtype) if ranks.first else ():
        console.info(f"not the environment of the go before: {difference}")
    family.recompute = config.tune.recompute
    clips = read_references(config.clip, family)
    config = for_what_moves(config, clips)
    for title, rows in Plan.of(config, run_dir, family, clips).tables():
        console.table(title, rows)
    timings = Timings(run_dir / "timings.json", family.device, writes=ranks.first)
    described = in_looks(clips, config.clip.captions, config.tune.looks)
    with ranks.first_ahead(together=family.sharded), timings.measure("cache"):
        described += in_scenes(
            family, clips, config.tune.scenes, run_dir / "cache", seed=config.tune.seed, writes=ranks.first
        )
    materials = _materials(family, described, run_dir, writes=ranks.first)
    samples = Samples(run_dir, config.generate, config.clip.prompt, tracker, writes=ranks.first)
    with ranks.first_ahead():
        sparse = _prepare(materials, config, run_dir, timings)
        if ranks.size > 1:
            wholes = [material.latents for material in materials]
            title, rows = sharing_table(config, family, wholes, ranks)
            console.table(title, rows)
        if acts:
            samples.encode(family)
        family.free_encoders(keep_vae=encodes_later(config.temporal))
    with ranks.first_ahead(together=family.sharded):
        references = materials[: len(clips)]
        head_map = _classified(config, run_dir, family, references, timings, console, ranks)
    state, resumed = begin(config, run_dir, family, clips, head_map)
    ranks.wait()  # before the first one writes further checkpoints
    spatial, temporal = state.adapters["spatial"], state.adapters["temporal"]
    title, rows = heads_table(head_map, spatial, temporal)
    console.table(title, rows)
    if spatial.targets != config.tune.targets:
        console.info(f"{family.model_id} takes adapters on {', '.join(spatial.targets)} only")
    if resumed:
        console.info(f"going on after step {state.step} of the {state.stage} stage")
    stages = [_stage(name, config, sparse) for name in STAGES[STAGES.index(state.stage) :]]
    with timings.measure("estimate"):
        found = [estimate(family, stage, state, config, ranks) for stage in stages]
    if any(found):
        title, rows = estimate_table([made for made in found if made])
        console.table(title, rows)
    about = _about(config, family, sparse[: len(clips)], looks=len(sparse))
    log = StepLog(run_dir / "train.jsonl", state.stage, state.step, tracker) if ranks.first else None
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
                    if acts:
                        samples.make(family, MotionFile(temporal, spatial, about), step)
                        family.free_encoders(keep_vae=encodes_later(config.temporal))
                    ranks.wait()

            if state.step:
                sample_now(state.step)  # in case the run was stopped between the step and its sample
            _tune(family, stages[-1], state, run_dir, log, timings, console, ranks, sample_now)
    finally:
        if log is not None:
            log.close()
    motion_path, report = run_dir / "motion.safetensors", run_dir / "report.html"
    if acts:
        about["norm_leak"] = _leak(family, state, sparse[0])
    with ranks.first_ahead():
        if ranks.first:
            keep_newest(run_dir / "checkpoints", config.tune.keep)  # a kill may have come just before that
            leak = f"{about['norm_leak']:.2%}"
            console.info(f"the heads without an adapter change by {leak} through the common norm")
            save_motion_file(motion_path, temporal, spatial, about)
    if acts:
        with timings.measure("sample"):
            samples.make(family, load_motion_file(motion_path), config.temporal.steps)
    if ranks.first:
        from fym.report import write_report

        report = write_report(run_dir)
    ranks.wait()
    return TrainResult(run_dir, motion_path, report, head_map)


def classify_clip(config: Config, run_dir: Path, *, console: Console) -> HeadMap:
    """Stage 1 alone: heads.json and heads.png in `run_dir`."""
    family = _load(config)
    clips = read_references(config.clip, family)
    materials = _materials(family, in_looks(clips, config.clip.captions, 1), run_dir)
    timings = Timings(run_dir / "timings.json", family.device)
    return _classify(config, run_dir, family, materials, timings, console)


def _load(config: Config) -> Family:
    return load_family(config.model.path, **config.model.loading)


def _shard(family: Family, ranks: Ranks, console: Console) -> None:
    if ranks.size > 1:
        family.shard(ranks.mesh(family.device))
    else:
        console.info("model.shard: there is one process, which holds the whole model")


def _materials(
    family: Family, described: Sequence[tuple[Clip, str]], run_dir: Path, *, writes: bool = True
) -> list[Material]:
    cache = run_dir / "cache"
    return [Material(family, clip, caption, cache, writes=writes) for clip, caption in described]


def _prepare(
    materials: Sequence[Material], config: Config, run_dir: Path, timings: Timings
) -> list[SparseClip]:
    """Encodes everything once and puts the first clip, as the model sees it, beside the results."""
    sparse = []
    with timings.measure("cache"):
        for material in materials:
            sparse.append(SparseClip(material, config.temporal))
            sparse[-1].encode()
    reference = run_dir / "reference.mp4"
    if not reference.exists():
        write_clip(reference, materials[0].clip.frames, materials[0].clip.fps)
    return sparse


def _classified(
    config: Config,
    run_dir: Path,
    family: Family,
    materials: Sequence[Material],
    timings: Timings,
    console: Console,
    ranks: Ranks,
) -> HeadMap:
    """The head map of the run that is resumed, or a new one; all processes have that of the first."""
    path = run_dir / "heads.json"
    resumed = path.exists() and load_checkpoint(run_dir / "checkpoints") is not None
    if not resumed and (ranks.first or family.sharded):
        found = _classify(config, run_dir, family, materials, timings, console, writes=ranks.first)
    if family.sharded:
        ranks.wait()
    return found if not resumed and ranks.first else HeadMap.load(path)


def _classify(
    config: Config,
    run_dir: Path,
    family: Family,
    materials: Sequence[Material],
    timings: Timings,
    console: Console,
    *,
    writes: bool = True,
) -> HeadMap:
    from fym.report import plots

    passes = config.heads.seeds * len(config.heads.sigmas)
    with timings.measure("classify"):
        console.start_stage("classify", passes * len(materials))
        maps: list[HeadMap] = []
        for material in materials:
            found = classify(
                family,
                material.latents,
                material.text,
                config.heads,
                seed=config.tune.seed,
                progress=lambda done: console.step("classify", len(maps) * passes + done, {}),
            )
            maps.append(found)
        head_map = mean_map(maps) if len(maps) > 1 else maps[0]
        console.end_stage()
    if writes:
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


def _stage(name: str, config: Config, sparse: Sequence[SparseClip]) -> Stage:
    if name == "spatial":
        frames = one_of([frame_draw(clip.material) for clip in sparse])
        return Stage(name, config.spatial, config.tune, frames)
    settings = config.temporal
    draw = one_of([clip_draw(clip, settings) for clip in sparse])
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


def _about(config: Config, family: Family, sparse: Sequence[SparseClip], looks: int) -> dict[str, Any]:
    """What the motion file says about itself."""
    materials = [clip.material for clip in sparse]
    about: dict[str, Any] = {
        "model_id": family.model_id,
        "model_hash": family.model_hash,
        "family": family.name,
        "layer_groups": list(family.layer_groups),
        "caption": "; ".join(dict.fromkeys(config.clip.prompt)),
        "references": [
            {
                "caption": material.caption,
                "sha256": material.clip.sha256,
                "start": config.clip.start,
                "crop": config.clip.crop,
                "size": list(material.clip.frames.shape[:3]),
                "fps": material.clip.fps,
            }
            for material in materials
        ],
        "frames": sparse[0].frame_index,
        "positions": config.temporal.positions,
        "latents": config.temporal.latents,
        "lowest_noise": config.temporal.lowest_noise,
        "steps": [config.spatial.steps, config.temporal.steps],
        "looks": looks,
        "seed": config.tune.seed,
    }
    if config.generate.guidance_scale >= 0:
        about["guidance_scale"] = config.generate.guidance_scale
    return about


def _leak(family: Family, state: TuningState, sparse: SparseClip) -> float:
    """Largest relative change, over layers, of queries and keys of heads that the temporal adapter leaves.

    Measured in the middle of the trained noise levels. 0 for families that normalise each head by itself.
    """
    generator = torch.Generator().manual_seed(0)
    latents, _ = sparse.draw(generator)
    sigma = torch.tensor([(1 + family.lowest_noise) / 2], device=latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = family.schedule.add_noise(latents[None], noise[None], sigma)
    adapters = [(state.adapters["temporal"], 1.0)]
    text, timestep = sparse.material.text, family.schedule.timestep(sigma)
    leaks = family.norm_leak(adapters, noisy, timestep, text)
    return max(max(pair) for pair in leaks)
