"""The configuration: every option, what it means and what it may be.

Paths are relative to the directory the command is run in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fym.options import Option, about, option, options_of


def _frames_4k1(value: int) -> str | None:
    if value == 0 or (value >= 5 and value % 4 == 1):
        return None
    lower = max(5, (value - 1) // 4 * 4 + 1)
    return (
        f"must be 4k+1 and at least 5, because 4 frames share one latent frame; take {lower} or {lower + 4}"
    )


def _sparse_4n1(value: int) -> str | None:
    return None if value != 0 and _frames_4k1(value) is None else _frames_4k1(max(value, 2))


def _not_empty(value: list[Any]) -> str | None:
    return None if value else "must have at least one entry"


def _open_sigmas(value: list[float]) -> str | None:
    return _not_empty(value) or (None if all(0 < s < 1 for s in value) else "each must lie between 0 and 1")


def _crop(value: str) -> str | None:
    good = not value or re.fullmatch(r"\d{1,5}:\d{1,5}:[1-9]\d{0,4}:[1-9]\d{0,4}", value)
    return None if good else "must be X:Y:WIDTH:HEIGHT, whole numbers such as 0:40:640:360"


@dataclass
class ModelConfig:
    """The video diffusion model."""

    path: str = option("embedded", 'the model: "embedded", a local diffusers folder or a hub id')
    dtype: str = option(
        "auto", "number format of the base model", choices=("auto", "float32", "bfloat16", "float16")
    )
    device: str = option("auto", 'device of the model: "auto", "cpu", "cuda", "cuda:1", ...')
    vae: str = option(
        "whole",
        "how the VAE takes large frames: whole, or in overlapping tiles (a fraction of the memory, slower, "
        "faint seams); HunyuanVideo and CogVideoX always use tiles",
        choices=("whole", "tiled"),
    )
    quantise: str = option(
        "none",
        "how the frozen weights of the transformer's blocks stand in memory: as they are, in 8 bits, or in 4 "
        "(less exact); adapters stay in float32",
        choices=("none", "int8", "nf4"),
    )
    offload: int = option(
        0,
        "how many of the transformer's blocks have their frozen weights in CPU memory and get them when they "
        "run, for which two blocks' room is kept on the device; -1 = all; needs tune.recompute = block",
        low=-1,
    )
    shard: bool = option(
        False,
        "with several processes (torchrun): each holds only a part of those weights and gets the rest while "
        "it computes with them",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """What `fym.families.load_family` takes besides the path."""
        return {name: getattr(self, name) for name in ("dtype", "device", "vae", "quantise", "offload")}


@dataclass
class ClipConfig:
    """The reference clip, or several that show one motion."""

    path: list[str] = field(
        default_factory=list,
        metadata=about("the reference clips of one motion: video files, gifs or folders of png frames"),
    )
    prompt: list[str] = field(
        default_factory=list,
        metadata=about("what the reference clip shows, in words; one for all clips or one for each"),
    )
    start: int = option(0, "first frame taken from the clip, as recorded", low=0)
    frames: int = option(
        0, "number of frames, 4k+1; 0 = the most that clip and model allow", low=0, check=_frames_4k1
    )
    fps: float = option(
        0.0, "frames a second taken from the clip, in its own time; 0 = as recorded", low=0, high=1000
    )
    crop: str = option(
        "", "part of the upright picture that is used, X:Y:WIDTH:HEIGHT in pixels; empty = all", check=_crop
    )
    height: int = option(0, "height in pixels after resize and centre crop; 0 = the model's", low=0)
    width: int = option(0, "width in pixels after resize and centre crop; 0 = the model's", low=0)

    @property
    def captions(self) -> list[str]:
        """One for each clip."""
        return self.prompt if len(self.prompt) > 1 else (self.prompt or [""]) * len(self.path)

    @property
    def region(self) -> tuple[int, int, int, int] | None:
        """crop as x, y, width, height; None = all."""
        left, top, width, height = map(int, self.crop.split(":")) if self.crop else (0, 0, 0, 0)
        return (left, top, width, height) if self.crop else None


@dataclass
class HeadsConfig:
    """Stage 1: which attention heads are spatial, which temporal."""

    rule: str = option("mass", "how a head is judged", choices=("mass", "cosine", "topk"))
    threshold: float = option(
        1.3, "rule mass: a head is temporal from this ratio of temporal to spatial mass", low=0
    )
    topk: int = option(
        0, "rule topk: this many heads with the largest ratio are temporal, over the whole model", low=0
    )
    grouping: str = option(
        "classified",
        "which heads each stage tunes: those the rule gives it, as many in each layer but drawn at random "
        "(by tune.seed), or all of them in both stages (no decoupling); the last two are controls",
        choices=("classified", "random", "all"),
    )
    band: float = option(1.0, "half-width of the attention band, in latent frames", low=0.01)
    seeds: int = option(3, "number of noise seeds averaged", low=1)
    rows: int = option(0, "query rows sampled per head; 0 = all up to 4096 tokens", low=0)
    sigmas: list[float] = field(
        default_factory=lambda: [0.9998],
        metadata=about("noise levels averaged, each between 0 and 1", check=_open_sigmas),
    )


@dataclass
class StageConfig:
    """What the two training stages share."""

    steps: int = option(500, "optimiser steps", low=0)
    learning_rate: float = option(1e-4, "learning rate", low=0)
    weight_decay: float = option(0.1, "weight decay", low=0)
    rank: int = option(16, "rank of the adapter", low=1)
    alpha: float = option(16.0, "the adapter is scaled by alpha / rank", low=0)
    batch_size: int = option(1, "samples a step", low=1)


@dataclass
class SpatialConfig(StageConfig):
    """Stage 2: appearance, one frame a step, on the spatial heads."""


@dataclass
class TemporalConfig(StageConfig):
    """Stage 3: motion, sparsely picked frames, on the temporal heads."""

    weight_decay: float = option(0.5, "weight decay", low=0)
    sparse_frames: int = option(17, "frames picked from the clip, 4n+1", check=_sparse_4n1)
    picking: str = option(
        "uniform",
        "which frames: evenly spread, with a random phase each step, where the motion is largest, or whole "
        "latent frames, one drawn from each part of the clip at each step",
        choices=("uniform", "phase", "motion", "groups"),
    )
    whole_share: float = option(
        0.0,
        "last share of the stage whose steps are taken on all frames, as clips are made, with fewer samples "
        "so that a step has the tokens it had; 0 = every step on picked frames",
        low=0,
        high=1,
    )
    positions: str = option(
        "stride",
        "time positions of the picked latent frames (none = 0, 1, 2, ...)",
        choices=("stride", "ratio", "pixel", "none"),
    )
    latents: str = option(
        "encode",
        "encode the picked frames as a clip of their own, or select from the latent frames of the full clip",
        choices=("encode", "select"),
    )
    motion_weight: float = option(1.0, "weight of the motion loss", low=0)
    lowest_noise: float = option(
        0.0,
        "lowest noise level trained on; the adapter then also acts only from there up when a clip is made, "
        "so that the model draws the details as it always did",
        low=0,
        high=0.99,
    )
    camera_lowest_noise: float = option(
        -1.0,
        "lowest_noise of the motion of a camera, which is tuned in the clip's own look and in tune.scenes: a "
        "moving ground is drawn at lower levels too; below 0 = as for an object",
        low=-1,
        high=0.99,
    )
    camera_guidance: float = option(
        -1.0,
        "guidance scale of clips made with a motion tuned so, kept in the motion file; below 0 = the model's",
    )
    person_lowest_noise: float = option(
        -1.0,
        "lowest_noise of the motion of a person, whom the caption names: limbs are drawn at lower levels "
        "than an object's path; below 0 = as for an object",
        low=-1,
        high=0.99,
    )
    person_guidance: float = option(
        -1.0,
        "guidance scale of clips made with a motion tuned so, kept in the motion file; below 0 = the model's",
    )
    debias: bool = option(False, "add the appearance-debiased term to the loss")

    @property
    def whole_steps(self) -> int:
        """The number of last steps on all frames."""
        return round(self.whole_share * self.steps)


@dataclass
class TuneConfig:
    """Both training stages."""

    optimizer: str = option(
        "adamw",
        "AdamW, or Muon, which fits a motion in fewer steps and keeps one state a weight instead of two",
        choices=("adamw", "muon"),
    )
    looks: int = option(
        1,
        "looks in which both stages see the clip: its own, and others in which the colours that its caption "
        "names are others, in the caption and in the picture, so that the motion is learned apart from them; "
        "a caption that names none gives one look",
        low=1,
        high=64,
    )
    scenes: list[str] = field(
        default_factory=list,
        metadata=about(
            "further looks of a clip whose camera moves, not turning about its axis: captions of scenes, of "
            "each of which the model draws a still for that camera to move over; they need things to see"
        ),
    )
    targets: str = option("qkvo", "projections that get an adapter", choices=("qkv", "qkvo"))
    noise: str = option("uniform", "distribution of the noise level", choices=("uniform", "logit_normal"))
    weighting: str = option("bell", "weight of a noise level in the loss", choices=("bell", "none"))
    grad_clip: float = option(1.0, "largest gradient norm; 0 = no clipping", low=0)
    decay: float = option(0.0, "last share of a stage over which the learning rate falls to 0", low=0, high=1)
    seed: int = option(0, "seed of the whole run", low=0, high=2**32 - 1)
    checkpoint_every: int = option(100, "steps between checkpoints", low=1)
    keep: int = option(2, "checkpoints kept", low=1)
    sample_every: int = option(0, "steps between sample clips; 0 = only at the end", low=0)
    log_every: int = option(10, "steps between log lines where the output is not a terminal", low=1)
    recompute: str = option(
        "none",
        "what is computed again instead of kept: nothing, the feed-forward layers' inner activations (under "
        "two thirds of the memory, some 10 % more time), or whole blocks (least memory, a third more time)",
        choices=("none", "ffn", "block"),
    )
    deterministic: bool = option(
        False,
        "on a GPU take only algorithms that give the same bits each time, which are slower; the CPU's do so "
        "anyway",
    )
    tensorboard: bool = option(False, "write the steps and the samples for TensorBoard too")


@dataclass
class GenerateConfig:
    """Clips made with a motion file, and the samples of a training run."""

    motion: list[str] = field(
        default_factory=list,
        metadata=about("the motion files, which act together; empty = the base model alone"),
    )
    prompts: list[str] = field(
        default_factory=list,
        metadata=about("what the new clips show; empty = the prompt of the reference clip"),
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata=about("one clip per prompt and seed", low=0, high=2**32 - 1, check=_not_empty),
    )
    temporal_scale: list[float] = field(
        default_factory=lambda: [1.0],
        metadata=about(
            "strength of the motion, one for all files or one for each", low=0, high=2, check=_not_empty
        ),
    )
    spatial_scale: list[float] = field(
        default_factory=lambda: [0.0],
        metadata=about("strength of the reference's look, likewise", low=0, high=2, check=_not_empty),
    )
    lowest_noise: float = option(
        -1.0, "noise level below which the motion no longer acts; below 0 = the motion file's", high=0.99
    )
    steps: int = option(0, "sampling steps; 0 = the model's", low=0)
    guidance_scale: float = option(
        -1.0, "guidance scale, kept in the motion file; below 0 = the motion file's, or else the model's"
    )
    negative_prompt: str = option("", "what guidance leads away from")
    frames: int = option(0, "number of frames, 4k+1; 0 = the model's", low=0, check=_frames_4k1)
    height: int = option(0, "height in pixels; 0 = the model's", low=0)
    width: int = option(0, "width in pixels; 0 = the model's", low=0)
    output: str = option(
        "out.mp4",
        "where the clip goes: .mp4, .gif, or a folder name ending in / for png frames; "
        "may hold {prompt}, {index} and {seed}",
    )


@dataclass
class Config:
    """Everything a run depends on; `fym init` writes it as a commented file."""

    preset: str = option(
        "auto",
        'values of the two stages not given here; "auto" = tiny for the embedded model, fast for others',
        choices=("auto", "paper", "fast", "tiny"),
    )
    output: str = option("", "the run directory; empty = runs/ and the clip's name")
    model: ModelConfig = field(default_factory=ModelConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)


OPTIONS: dict[str, Option] = options_of(Config)
