"""The memory that phases of a run take.

`python -m tests.measure_phase TINY MODEL WEIGHTS FxHxW PHASE:RECOMPUTE ...`

WEIGHTS: none, int8 or nf4 as `model.quantise`, or shard. Prints a line for each: the bytes by which its peak
stands above the process after the same phase of a tiny model of the family, when all libraries are there. The
caller tells glibc to give freed memory back. Of several processes, as torchrun starts them for one phase, the
first prints.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from fym import memory
from fym.adapters import HeadLora
from fym.config import Config
from fym.config_file import load_config
from fym.console import Console
from fym.families import Family, load_family
from fym.heads import classify
from fym.positions import latent_frames
from fym.ranks import launched
from fym.runlog import STAGES
from fym.stage import Sample, Stage, run_stage
from fym.state import TuningState

SPATIAL_BATCH = 4
CPU = torch.device("cpu")
SHARD = "shard"


def settings(model: str, weights: str, recompute: str, size: Sequence[int]) -> Config:
    """Two steps of each stage; clips are made of the reference's size. size: frames, height, width."""
    given = {
        "model.path": model,
        "model.quantise": "none" if weights == SHARD else weights,
        "model.shard": weights == SHARD,
        "tune.recompute": recompute,
        "spatial.batch_size": SPATIAL_BATCH,
    }
    given |= {"spatial.steps": 2, "temporal.steps": 2, "heads.seeds": 1, "heads.sigmas": [0.9]}
    given |= dict(zip(("generate.frames", "generate.height", "generate.width"), size, strict=True))
    return load_config(None, given | {"generate.steps": 2})


def halves(family: Family, config: Config) -> dict[str, HeadLora]:
    """Both adapters, each on half of the heads of every layer, as the forecast assumes."""
    made = {}
    for first, stage in enumerate(STAGES):
        made[stage] = HeadLora(
            [list(range(first, family.num_heads, 2))] * family.num_layers,
            num_heads=family.num_heads,
            head_dim=family.head_dim,
            rank=getattr(config, stage).rank,
            alpha=getattr(config, stage).alpha,
            targets=family.targets,
        )
    return made


def peak(model: str, weights: str, phase: str, recompute: str, size: Sequence[int]) -> float:
    """MiB."""
    frames, height, width = size
    config, ranks = settings(model, weights, recompute, size), launched()
    family = load_family(model, device="cpu", quantise=config.model.quantise)
    if config.model.shard:
        for parameter in family.transformer.parameters():
            parameter.data = parameter.data.clone()  # else they stay in the pages of the file
        family.shard(ranks.mesh(CPU))
    family.recompute = recompute
    text, empty = family.encode_prompts(["a"]), family.encode_prompts([""])
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    if phase == "encode":
        family.part("vae")
        memory.reset_peak(CPU)
        family.encode_video(video)
        return memory.peak(CPU)["rss_mib"]
    family.free_encoders()
    scale, channels = family.pipeline.vae_scale_factor_spatial, family.transformer.config.in_channels
    latents = torch.randn(channels, latent_frames(frames), height // scale, width // scale)
    adapters = halves(family, config)
    memory.reset_peak(CPU)
    if phase == "classify":
        with torch.no_grad():
            classify(family, latents, text, config.heads, seed=0)
    elif phase == "sample":
        for adapter in adapters.values():
            adapter.requires_grad_(False)
        with family.attention(adapters=[(adapter, 1.0) for adapter in adapters.values()]):
            family.sample(
                text,
                empty,
                generator=torch.Generator().manual_seed(0),
                num_frames=frames,
                height=height,
                width=width,
                steps=2,
                guidance_scale=family.defaults.guidance_scale,
            )
    else:
        state = TuningState(torch.Generator().manual_seed(0), {}, adapters)
        state.enter(phase, config)
        batch = latents[:, :1].expand(SPATIAL_BATCH, -1, -1, -1, -1) if phase == "spatial" else latents[None]
        sample = Sample(batch, None, text)
        weight = config.temporal.motion_weight if phase == "temporal" else 0.0
        stage = Stage(phase, getattr(config, phase), config.tune, lambda *_: sample, weight)
        with tempfile.TemporaryDirectory() as folder:
            console = Console(stream=sys.stderr)
            run_stage(family, stage, state, folder=Path(folder), log=None, console=console, ranks=ranks)
    return memory.peak(CPU)["rss_mib"]


def measured(tiny: str, model: str, weights: str, size: Sequence[int], wanted: str) -> float:
    """Bytes by which a phase's peak, wanted as "phase:recompute", stands above the same of the tiny model."""
    phase, recompute = wanted.split(":")
    peak(tiny, weights, phase, recompute, (5, 32, 64))
    gc.collect()
    before = memory.now()
    return (peak(model, weights, phase, recompute, size) - before) * memory.MIB


if __name__ == "__main__":
    tiny, model, weights, size, *phases = sys.argv[1:]
    for wanted in phases:  # a fork for each, so that none finds memory that another has left
        with multiprocessing.get_context("fork").Pool(1) as pool:
            given = tiny, model, weights, [int(n) for n in size.split("x")], wanted
            found = pool.apply(measured, given)
            if os.environ.get("RANK", "0") == "0":
                print(found, flush=True)
