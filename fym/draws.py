"""What a tuning step works on, drawn from one clip or from several. B samples at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fym.config import TemporalConfig
from fym.material import Material, SparseClip
from fym.positions import whole_clips
from fym.stage import Draw, Sample


def one_of(draws: Sequence[Draw]) -> Draw:
    """Each step from one clip; a single one takes no random number."""
    if len(draws) == 1:
        return draws[0]

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        which = int(torch.randint(len(draws), (), generator=generator))
        return draws[which](generator, batch, step)

    return draw


def frame_draw(material: Material) -> Draw:
    """Frames of the clip, each alone, with its caption and no time."""

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        latents = material.frame_latents
        index = torch.randint(material.num_frames, (batch,), generator=generator)
        return Sample(latents[index.to(latents.device)], None, material.text)

    return draw


def clip_draw(sparse: SparseClip, settings: TemporalConfig) -> Draw:
    """The clip with its caption: picked frames, in the last `whole_steps` all of them."""
    material = sparse.material

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        if step > settings.steps - settings.whole_steps:
            whole = material.latents
            clips = whole_clips(batch, settings.sparse_frames, whole.shape[1])
            return Sample(whole.expand(clips, -1, -1, -1, -1), None, material.text)
        latents, positions = sparse.draw(generator)
        return Sample(latents.expand(batch, -1, -1, -1, -1), positions, material.text)

    return draw
