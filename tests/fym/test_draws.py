"""What steps draw: in the spatial stage the looks take turns, in the temporal one all come equally often."""

from __future__ import annotations

from collections import Counter

import torch

from fym.config import TemporalConfig
from fym.draws import clip_draw, frame_draw
from fym.material import SparseClip


def test_looks_take_turns_each_with_its_adapter(material):
    draw = frame_draw(material, 3)
    generator = torch.Generator().manual_seed(0)
    for step, look in ((3, 0), (4, 1), (5, 2), (6, 0)):
        sample = draw(generator, 4, step)
        assert sample.active == (f"look{look}" if look else "spatial",)
        frames = material.frame_latents(look)
        assert all(any(torch.equal(one, frame) for frame in frames) for one in sample.latents)


def test_the_motion_is_drawn_in_each_look(material):
    settings = TemporalConfig(sparse_frames=9, steps=400, whole_share=0.5)
    sparse = SparseClip(material, settings)
    draw = clip_draw(sparse, settings, 4)
    generator = torch.Generator().manual_seed(0)
    for step in (1, 201):
        seen: Counter[str] = Counter()
        for _ in range(200):
            sample = draw(generator, 2, step)
            name, temporal = sample.active
            seen[name] += 1
            look = int(name.removeprefix("look")) if name != "spatial" else 0
            expected = material.encoded(None, look) if step > 200 else sparse.draw(generator, look)[0]
            assert temporal == "temporal" and torch.equal(sample.latents[0], expected)
        assert len(seen) == 4 and min(seen.values()) > 25


def test_with_one_look_no_random_number_is_taken_for_it(material):
    """So a run without copies is the run it was before there were looks."""
    settings = TemporalConfig(sparse_frames=9)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    sample = clip_draw(SparseClip(material, settings), settings)(generator, 1, 1)
    assert sample.active == ("spatial", "temporal") and torch.equal(generator.get_state(), before)
