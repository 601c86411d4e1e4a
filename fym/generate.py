"""New clips with the learned motion, through the model's own sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fym.adapters import HeadLora
from fym.config import GenerateConfig
from fym.errors import UserError
from fym.families.base import AttentionControl, Family
from fym.motion_file import MotionFile
from fym.positions import COMPRESSION


def generate(
    family: Family,
    prompts: Sequence[str],
    *,
    motion: MotionFile | Sequence[MotionFile] | None,
    temporal_scale: float | Sequence[float] = 1.0,
    spatial_scale: float | Sequence[float] = 0.0,
    lowest_noise: float | None = None,
    seeds: Sequence[int] = (0,),
    num_frames: int = 0,
    height: int = 0,
    width: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
) -> list[Tensor]:
    """One clip (F,H,W,3) uint8 per prompt and seed, prompts outermost; 0 and None are the model's own values.

    motion = None is the model without adapters; several motion files act together. The adapters act at
    temporal_scale (motion) and spatial_scale (the reference's look), one number for all files or one for
    each; the time positions are the plain 0 ... F'-1. A temporal adapter acts in the steps whose noise level
    (timestep over 1000) is at least lowest_noise, None = the level from which it was trained;
    guidance_scale = None is the least that the motion files are meant for; guidance leads away from
    negative_prompt. At lowest_noise 0 the result equals that of the plain diffusers pipeline with the motion
    files loaded, a CPU generator of the same seed and the same settings.
    Raises UserError for a size that does not fit the model, or a spatial_scale without a spatial adapter.
    """
    defaults = family.defaults
    frames = num_frames or defaults.num_frames
    if frames % COMPRESSION != 1:
        raise UserError(f"{frames} frames do not fit the model", "frames must be 4k+1", "Change --frames")
    size = (height or defaults.height, width or defaults.width)
    family.check_size(*size)
    motions = [motion] if isinstance(motion, MotionFile) else list(motion or ())
    if guidance_scale is None:
        meant = (motion.guidance_scale for motion in motions)
        guidance_scale = min((s for s in meant if s is not None), default=defaults.guidance_scale)
    parts = _parts(motions, _each(temporal_scale, motions), _each(spatial_scale, motions), lowest_noise)
    adapters = [(adapter, scale) for adapter, scale, _ in parts]
    # Together: the text encoder moves once.
    texts = family.encode_prompts([*prompts, negative_prompt]).split(1)
    clips = []
    with family.attention(adapters=adapters) as control, _windows(family, control, parts):
        for text in texts[:-1]:
            for seed in seeds:
                clips.append(
                    family.sample(
                        text,
                        texts[-1] if guidance_scale > 1 else None,
                        generator=torch.Generator().manual_seed(seed),
                        num_frames=frames,
                        height=size[0],
                        width=size[1],
                        steps=steps or defaults.num_inference_steps,
                        guidance_scale=guidance_scale,
                    )
                )
    return clips


def one_clip(
    family: Family,
    config: GenerateConfig,
    prompt: str,
    seed: int,
    *,
    motion: MotionFile | Sequence[MotionFile] | None,
) -> Tensor:
    """A clip (F,H,W,3) uint8 with a configuration's settings; its prompts, seeds and motion are not read.

    For a single motion file the first of the scales counts.
    """
    single = isinstance(motion, MotionFile)
    [clip] = generate(
        family,
        [prompt],
        motion=motion,
        temporal_scale=config.temporal_scale[:1] if single else config.temporal_scale,
        spatial_scale=config.spatial_scale[:1] if single else config.spatial_scale,
        lowest_noise=None if config.lowest_noise < 0 else config.lowest_noise,
        seeds=[seed],
        num_frames=config.frames,
        height=config.height,
        width=config.width,
        steps=config.steps,
        guidance_scale=None if config.guidance_scale < 0 else config.guidance_scale,
        negative_prompt=config.negative_prompt,
    )
    return clip


@contextmanager
def _windows(
    family: Family, control: AttentionControl, parts: Sequence[tuple[HeadLora, float, float]]
) -> Iterator[None]:
    """Leaves each (adapter, scale, lowest noise level) out of the steps below its level."""
    if all(lowest <= 0 for _, _, lowest in parts):
        yield
        return
    stacks = {(True,) * len(parts): control.stack}
    timesteps = family.schedule.num_timesteps

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = float(kwargs["timestep"].max())
        acting = tuple(timestep >= lowest * timesteps for _, _, lowest in parts)
        if acting not in stacks:
            stacks[acting] = family.stack(
                [part[:2] for part, acts in zip(parts, acting, strict=True) if acts]
            )
        control.stack = stacks[acting]

    hook = family.transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _parts(
    motions: Sequence[MotionFile],
    temporal_scales: Sequence[float],
    spatial_scales: Sequence[float],
    lowest_noise: float | None,
) -> list[tuple[HeadLora, float, float]]:
    """(adapter, scale, lowest noise level) of all that acts; lowest_noise: instead of the files' own."""
    parts = []
    for motion, temporal, spatial in zip(motions, temporal_scales, spatial_scales, strict=True):
        if spatial and motion.spatial is None:
            raise UserError(
                "The look of the reference is not there",
                "spatial.safetensors of the same run does not lie beside the motion file",
                "Put it there or leave out --spatial-scale",
            )
        for adapter, lowest in motion.acting():
            parts.append((adapter, temporal, lowest if lowest_noise is None else lowest_noise))
        if motion.spatial is not None:
            parts.append((motion.spatial, spatial, 0.0))
    return parts


def _each(scale: float | Sequence[float], motions: Sequence[MotionFile]) -> Sequence[float]:
    """One number for every motion file."""
    scales = [scale] if isinstance(scale, int | float) else list(scale)
    return scales * len(motions) if len(scales) == 1 else scales
