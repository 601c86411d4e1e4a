"""What a tuning step works on, drawn from one reference or from several. B samples at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fym.config import TemporalConfig
from fym.material import Material, SparseClip
from fym.positions import whole_clips
from fym.stage import Draw, Sample
from fym.state import look_name


def one_of(draws: Sequence[Draw]) -> Draw:
    """Each step from one reference; a single one takes no random number."""
    if len(draws) == 1:
        return draws[0]

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        which = int(torch.randint(len(draws), (), generator=generator))
        return draws[which](generator, batch, step)

    return draw


def frame_draw(material: Material, looks: int = 1) -> Draw:
    """Frames of the clip, each alone, with its caption and no time; the looks take turns."""

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        look = step % looks
        index = torch.randint(material.num_frames, (batch,), generator=generator)
        latents = material.frame_latents(look)
        return Sample(latents[index.to(latents.device)], None, material.text, (look_name(look),))

    return draw


def clip_draw(sparse: SparseClip, settings: TemporalConfig, looks: int = 1) -> Draw:
    """The clip in one of its looks, with its caption and that look's adapter: picked frames, in the last
    `whole_steps` all of them.
    """
    material = sparse.material

    def draw(generator: torch.Generator, batch: int, step: int) -> Sample:
        look = int(torch.randint(looks, (), generator=generator)) if looks > 1 else 0
        active = (look_name(look), "temporal")
        if step > settings.steps - settings.whole_steps:
            whole = material.encoded(None, look)
            clips = whole_clips(batch, settings.sparse_frames, whole.shape[1])
            return Sample(whole.expand(clips, -1, -1, -1, -1), None, material.text, active)
        latents, positions = sparse.draw(generator, look)
        return Sample(latents.expand(batch, -1, -1, -1, -1), positions, material.text, active)

    return draw
