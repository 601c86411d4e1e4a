"""New clips with the learned motion, through the model's own sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fym.adapters import HeadLora
from fym.errors import UserError
from fym.families.base import Family
from fym.motion_file import MotionFile
from fym.positions import COMPRESSION


def generate(
    family: Family,
    prompts: Sequence[str],
    *,
    motion: MotionFile | None,
    temporal_scale: float = 1.0,
    spatial_scale: float = 0.0,
    seeds: Sequence[int] = (0,),
    num_frames: int = 0,
    height: int = 0,
    width: int = 0,
    steps: int = 0,
    guidance_scale: float | None = None,
) -> list[Tensor]:
    """One clip (F,H,W,3) uint8 per prompt and seed, prompts outermost; 0 and None are the model's own values.

    motion = None is the model without adapters. The adapters act at temporal_scale (motion) and spatial_scale
    (the reference's look); the time positions are the plain 0 ... F'-1. The result equals that of the plain
    diffusers pipeline with the motion file loaded, a CPU generator of the same seed and the same settings.
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
    texts = family.encode_prompts([*prompts, ""]).split(1)  # together: the text encoder moves once
    clips = []
    with family.attention(adapters=adapters):
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
