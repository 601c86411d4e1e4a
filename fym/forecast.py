"""Peak memory and work of every phase of a run, from shapes alone: no weights, no memory, nothing measured.

The family's own code runs on tensors without values (fym.shapes_only), so what is counted is what it does:
weights, adapters and AdamW's state, activations kept for the backward pass, and the temporary tensors of each
layer. B batch, F pixel frames, C,h,w latent channels and size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fym_kernels
from fym.adapters import HeadLora
from fym.config import Config, StageConfig
from fym.families.pipeline import PipelineFamily
from fym.families.quantised import num_weights
from fym.losses import tuning_loss
from fym.material import encodes_later
from fym.positions import latent_frames, whole_clips
from fym.ranks import Ranks
from fym.runlog import STAGES
from fym.shapes_only import LiveBytes, shapes_only
from fym.stage import predict_share

WHOLE = "temporal, all frames"
FEW, MORE = 13, 17  # frames
CLIP_COPIES = 4  # float32: the clip, its tiles, which overlap, and what is put together of them


@dataclass(frozen=True)
class Phase:
    """bytes alive at most, of which `weights` all the while; FLOPs of one pass (a step of tuning or of
    denoising), 0 where they are not known: encoding takes moments."""

    name: str
    weights: int
    peak: int
    flops: float
    passes: int
    moves: int = 0  # bytes of offloaded weights that come to the device in each pass


@dataclass(frozen=True)
class Job:
    """What a run works on: the reference clip and the size of the clips it makes."""

    frames: int
    height: int
    width: int
    sample: tuple[int, int, int]

    @classmethod
    def of(cls, config: Config, family: PipelineFamily, clip: tuple[int, int, int]) -> Job:
        """clip: frames, height and width of the reference."""
        wanted, own = config.generate, family.defaults
        size = (wanted.frames or own.num_frames, wanted.height or own.height, wanted.width or own.width)
        return cls(*clip, size)


def forecast(
    family: PipelineFamily,
    config: Config,
    job: Job,
    recompute: Sequence[str],
    *,
    host: bool,
    processes: int = 1,
) -> dict[str, list[Phase]]:
    """The phases of `fym train`, in order, for each level of `tune.recompute`, which alters the stages only.
    UserError where so many processes cannot share a step.

    family: from `fym.families.skeleton`. host: the model runs on the CPU, where text encoders, VAE and
    transformer all stand in memory until the encoders are freed; on a GPU each comes when it is needed. The
    heads are taken to be half spatial and half temporal in every layer.
    """
    encode, sample = vae_phases(family, config, job, host=host)
    before = [_reading(family, host), encode, _classifying(family, config, job)]
    found = {}
    for level in recompute:
        family.recompute = level
        found[level] = [*before, *_tuning(family, config, job, processes), sample]
    return found


def vae_phases(family: PipelineFamily, config: Config, job: Job, *, host: bool) -> tuple[Phase, Phase]:
    """The two phases that depend on how the VAE works: "encode" and "sample"."""
    family.recompute, family.lowest_noise = "none", 0.0  # levels are values; which ones does not matter
    return _encoding(family, job, host), _sampling(family, config, job, host)


def _reading(family: PipelineFamily, host: bool) -> Phase:
    """One prompt through all text encoders."""
    encoders = [getattr(family.pipeline, name) for name in family.encoders]
    length = family.defaults.max_sequence_length

    def read() -> None:
        for encoder in encoders:
            most = getattr(encoder.config, "max_position_embeddings", length)
            encoder(input_ids=torch.zeros(1, min(length, most), dtype=torch.int64))

    return _count("text", read, [*encoders, *_beside(family, host)], 0.0, 1)


def _beside(family: PipelineFamily, host: bool) -> list[nn.Module]:
    return [family.transformer, family.pipeline.vae] if host else []


def _encoding(family: PipelineFamily, job: Job, host: bool) -> Phase:
    def encode(frames: int, height: int, width: int) -> None:
        family.encode_video(torch.zeros(frames, height, width, 3, dtype=torch.uint8))

    encoders = [getattr(family.pipeline, name) for name in family.encoders] if host else []
    parts = [*_beside(family, host), *encoders] or [family.pipeline.vae]
    size = job.frames, job.height, job.width
    return _autoencoding("encode", family, encode, size, parts, host)


def _autoencoding(
    name: str,
    family: PipelineFamily,
    run: Callable[[int, int, int], None],
    size: tuple[int, int, int],
    parts: list[nn.Module],
    host: bool,
) -> Phase:
    """The VAE on a clip. Every VAE here takes few frames at a time and caches some, so beyond FEW frames the
    peak grows linearly; tiled, it takes one tile at a time, beside the clip as pixels CLIP_COPIES times."""
    (frames, height, width), vae = size, family.pipeline.vae
    rest = 0
    if family.tiled_vae:
        tile = vae.tile_sample_min_height, vae.tile_sample_min_width
        rest = CLIP_COPIES * 12 * frames * (height * width)
        height, width = min(height, tile[0]), min(width, tile[1])
        frames = min(frames, getattr(vae, "tile_sample_min_num_frames", frames))
    counts = [frames] if frames <= MORE else [FEW, MORE]
    found = [
        _count(name, lambda f=f: run(f, height, width), parts, 0.0, 1, host=host)  # type: ignore[misc]
        for f in counts
    ]
    slope = (found[-1].peak - found[0].peak) / (MORE - FEW)
    return replace(found[-1], peak=int(found[-1].peak + slope * (frames - counts[-1])) + rest)


def _classifying(family: PipelineFamily, config: Config, job: Job) -> Phase:
    grid = family.grid(_latents(family, job, latent_frames(job.frames)))

    def classify() -> None:
        def score(layer: int, query: Tensor, key: Tensor) -> None:
            fym_kernels.head_scores(query, key, grid, band=config.heads.band)

        with family.attention(on_qk=score):
            family.predict(*_inputs(family, job, 1, latent_frames(job.frames)))

    passes = config.heads.seeds * len(config.heads.sigmas)
    return _count("classify", classify, [family.transformer], _forward_flops(family, math.prod(grid)), passes)


def _tuning(family: PipelineFamily, config: Config, job: Job, processes: int) -> Iterator[Phase]:
    adapters = _adapters(family, config)
    sparse, whole = latent_frames(config.temporal.sparse_frames), latent_frames(job.frames)
    batch = config.temporal.batch_size
    stage = partial(_stage, family, config, job, adapters, processes)
    yield stage("spatial", config.spatial.batch_size, 1)
    if config.temporal.whole_steps < config.temporal.steps:
        yield stage("temporal", batch, sparse)
    if config.temporal.whole_steps:
        yield stage("temporal", whole_clips(batch, config.temporal.sparse_frames, whole), whole, name=WHOLE)


def _stage(
    family: PipelineFamily,
    config: Config,
    job: Job,
    adapters: dict[str, HeadLora],
    processes: int,
    stage: str,
    batch: int,
    frames: int,
    name: str = "",
) -> Phase:
    """A step of a stage on `batch` clips of so many latent frames, of which one process does its share."""
    latents = _latents(family, job, frames)
    last = Ranks(processes - 1, processes)  # none has more
    mine, band = last.share(stage, batch, partial(family.band_axis, latents))
    batch = mine.stop - mine.start
    acting = [adapters["spatial"]] if stage == "spatial" else list(adapters.values())
    trained = adapters[stage]
    for adapter in acting:
        adapter.requires_grad_(adapter is trained)
    weight = config.temporal.motion_weight if stage == "temporal" else 0.0
    moments = 1 if config.tune.optimizer == "muon" else 2

    def step() -> None:
        states = [torch.empty(p.shape) for p in trained.parameters() for _ in range(moments)]
        noisy, timestep, text = _inputs(family, job, batch, frames)
        target, levels = torch.empty_like(noisy), torch.empty(batch)
        with family.attention(adapters=[(adapter, 1.0) for adapter in acting]) as control:
            pred = predict_share(family, control, band, noisy, timestep, text)
            tuning_loss(pred, target, levels, motion_weight=weight).backward()
        del pred, states
        for parameter in trained.parameters():
            parameter.grad = None

    whole = config.temporal.whole_steps if stage == "temporal" else 0
    steps = config.spatial.steps if stage == "spatial" else config.temporal.steps
    passes = whole if name else steps - whole
    parts = [family.transformer, *acting, *([family.pipeline.vae] if encodes_later(config.temporal) else [])]
    flops = batch * _step_flops(family, math.prod(family.grid(latents)))
    return _count(name or stage, step, parts, flops / (band.count if band else 1), passes)


def _sampling(family: PipelineFamily, config: Config, job: Job, host: bool) -> Phase:
    """Of one clip: every denoising step, then the VAE."""
    frames, height, width = job.sample
    made = Job(frames, height, width, job.sample)
    steps = config.generate.steps or family.defaults.num_inference_steps
    adapters = _adapters(family, config)
    for adapter in adapters.values():
        adapter.requires_grad_(False)
    guided = family.guided_passes if family.defaults.guidance_scale > 1 else 1

    def denoise() -> None:
        with family.attention(adapters=[(adapter, 1.0) for adapter in adapters.values()]):
            family.predict(*_inputs(family, made, 1, latent_frames(frames)))

    def decode(frames: int, height: int, width: int) -> None:
        latents = _latents(family, Job(frames, height, width, job.sample), latent_frames(frames))
        family.decode_video(latents)

    parts = [family.transformer, family.pipeline.vae, *adapters.values()]
    flops = _forward_flops(family, family.tokens(frames, height, width))
    first = _count("sample", denoise, parts, flops, steps * guided)
    second = _autoencoding("sample", family, decode, job.sample, parts, host)
    return replace(first, peak=max(first.peak, second.peak))


def _adapters(family: PipelineFamily, config: Config) -> dict[str, HeadLora]:
    """Half of the heads each, shapes only."""
    made = {}
    for first, stage in enumerate(STAGES):
        settings: StageConfig = getattr(config, stage)
        heads = [list(range(first, family.num_heads, 2))] * family.num_layers
        with torch.device("meta"):
            made[stage] = HeadLora(
                heads,
                num_heads=family.num_heads,
                head_dim=family.head_dim,
                rank=settings.rank,
                alpha=settings.alpha,
                targets=config.tune.targets if family.targets == "qkvo" else family.targets,
            )
    return made


def _inputs(family: PipelineFamily, job: Job, batch: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    latents = _latents(family, job, frames)
    text = torch.empty(1, *family.text_shape, dtype=family.dtype)
    return latents[None].expand(batch, -1, -1, -1, -1).clone(), torch.empty(batch), text


def _latents(family: PipelineFamily, job: Job, frames: int) -> Tensor:
    scale = family.pipeline.vae_scale_factor_spatial
    channels = family.transformer.config.in_channels
    return torch.empty(channels, frames, job.height // scale, job.width // scale)


def _count(
    name: str,
    run: Callable[[], Any],
    parts: list[nn.Module],
    flops: float,
    passes: int,
    *,
    host: bool = False,
) -> Phase:
    live = LiveBytes(host=host)
    everything = nn.ModuleList(parts)
    grad = nullcontext() if name.startswith(STAGES) else torch.no_grad()
    with shapes_only(everything), grad:
        for tensor in [*everything.parameters(), *everything.buffers()]:
            live.track(tensor)
        weights = live.now
        with live:
            run()
    return Phase(name, weights, live.peak, flops, passes)


def _forward_flops(family: PipelineFamily, tokens: int) -> float:
    """Of one clip: two for each weight of the layers and each token, and attention's two products."""
    weights = sum(num_weights(block) for group in family.blocks() for block in group)
    width = family.num_heads * family.head_dim
    return 2.0 * weights * tokens + _attention_flops(family, tokens, width)


def _attention_flops(family: PipelineFamily, tokens: int, width: int) -> float:
    return 4.0 * family.num_layers * tokens**2 * width


def _step_flops(family: PipelineFamily, tokens: int) -> float:
    """Forward and backward: frozen weights have no gradient, attention's backward makes five products where
    its forward makes two; and what is computed again (the first feed-forward product is a quarter)."""
    width = family.num_heads * family.head_dim
    forward, attention = _forward_flops(family, tokens), _attention_flops(family, tokens, width)
    again = {"none": 0.0, "ffn": 0.25 * (forward - attention), "block": forward}[family.recompute]
    return 2 * (forward - attention) + 3.5 * attention + again
