"""How the processes of a run share each kind of step, told and checked before the long work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from fym.config import Config
from fym.families.base import Family
from fym.plan import Table
from fym.positions import latent_frames, whole_clips
from fym.ranks import Ranks


def sharing_table(config: Config, family: Family, clips: Sequence[Tensor], ranks: Ranks) -> Table:
    """For the first screen. clips: each (C,F',h,w). UserError where a process would have no work."""
    spatial, temporal = config.spatial, config.temporal
    rows = []
    for whole in clips:
        sparse = whole[:, : latent_frames(temporal.sparse_frames)]
        count = whole_clips(temporal.batch_size, temporal.sparse_frames, whole.shape[1])
        for stage, kind, steps, samples, latents in (
            ("spatial", "frames", spatial.steps, spatial.batch_size, whole[:, :1]),
            ("temporal", "sparse clips", temporal.steps - temporal.whole_steps, temporal.batch_size, sparse),
            ("temporal", "whole clips", temporal.whole_steps, count, whole),
        ):
            if steps:
                bands = ranks.bands(stage, samples, partial(family.band_axis, latents))
                split = f", each in {bands} bands" if bands > 1 else ""
                rows.append((stage, f"{samples} {kind} a step{split}"))
    return f"Shared by {ranks.size} processes", list(dict.fromkeys(rows))
