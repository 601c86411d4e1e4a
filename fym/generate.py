"""New clips with the learned motion, through the model's own sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fym.adapters import AdapterStack, HeadLora
from fym.errors import UserError
from fym.families.base import AttentionControl, Family
from fym.motion_file import MotionFile
from fym.positions import COMPRESSION


def generate(
    family: Family,
    prompts: Sequence[str],
    *,
    motion: MotionFile | None,
    temporal_scale: float = 1.0,
    spatial_scale: float = 0.0,
    lowest_noise: float | None = None,
    seeds: Sequence[int] = (0,),
    num_frames: int = 0,
    height: int = 0,
    width: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
) -> list[Tensor]:
    """One clip (F,H,W,3) uint8 per prompt and seed, prompts outermost; 0 and None are the model's own values.

    motion = None is the model without adapters. The adapters act at temporal_scale (motion) and
    spatial_scale (the reference's look); the time positions are the plain 0 ... F'-1. The temporal adapter
    acts in the steps whose noise level (timestep over 1000) is at least lowest_noise, None = the level from
    which it was trained. At 0 the result equals that of the plain diffusers pipeline with the motion file
    loaded, a CPU generator of the same seed and the same settings.
    Raises UserError for a size that does not fit the model, or a spatial_scale without a spatial adapter.
    """
    defaults = family.defaults
    frames = num_frames or defaults.num_frames
    if frames % COMPRESSION != 1:
        raise UserError(f"{frames} frames do not fit the model", "frames must be 4k+1", "Change --frames")
    size = (height or defaults.height, width or defaults.width)
    family.check_size(*size)
    guidance = defaults.guidance_scale if guidance_scale is None else guidance_scale
    adapters = list(_adapters(motion, temporal_scale, spatial_scale))
    if lowest_noise is None:
        lowest_noise = float(motion.metadata.get("lowest_noise", 0.0)) if motion is not None else 0.0
    texts = family.encode_prompts([*prompts, ""]).split(1)  # together: the text encoder moves once
    clips = []
    with family.attention(adapters=adapters) as control, _window(family, control, adapters, lowest_noise):
        for text in texts[:-1]:
            for seed in seeds:
                clips.append(
                    family.sample(
                        text,
                        texts[-1] if guidance > 1 else None,
                        generator=torch.Generator().manual_seed(seed),
                        num_frames=frames,
                        height=size[0],
                        width=size[1],
                        steps=steps or defaults.num_inference_steps,
                        guidance_scale=guidance,
                    )
                )
    return clips


@contextmanager
def _window(
    family: Family, control: AttentionControl, adapters: Sequence[tuple[HeadLora, float]], lowest_noise: float
) -> Iterator[None]:
    """Leaves the temporal adapter, the first of `adapters`, out of the steps below a noise level."""
    if not adapters or lowest_noise <= 0:
        yield
        return
    whole, rest = control.stack, AdapterStack(adapters[1:])
    lowest = lowest_noise * family.schedule.num_timesteps

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        control.stack = whole if float(kwargs["timestep"].max()) >= lowest else rest

    hook = family.transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _adapters(
    motion: MotionFile | None, temporal_scale: float, spatial_scale: float
) -> Sequence[tuple[HeadLora, float]]:
    if motion is None:
        return ()
    if spatial_scale and motion.spatial is None:
        raise UserError(
            "The look of the reference is not there",
            "spatial.safetensors of the same run does not lie beside the motion file",
            "Put it there or leave out --spatial-scale",
        )
    pairs = [(motion.temporal, temporal_scale)]
    if motion.spatial is not None:
        pairs.append((motion.spatial, spatial_scale))
    return pairs
