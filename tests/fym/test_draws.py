"""What steps draw: frames alone, picked frames or the whole clip, of one clip or of several equally often."""

from __future__ import annotations

from dataclasses import replace

import torch

from fym.config import TemporalConfig
from fym.draws import clip_draw, frame_draw, one_of
from fym.material import Material, SparseClip


def test_frames_are_drawn_alone_with_their_caption(material):
    generator = torch.Generator().manual_seed(0)
    drawn = [frame_draw(material)(generator, 4, step) for step in range(1, 41)]
    latents = torch.cat([sample.latents for sample in drawn])
    which = [[torch.equal(one, frame) for frame in material.frame_latents].index(True) for one in latents]
    assert set(which) == set(range(17))
    for sample in drawn:
        assert sample.positions is None
        assert torch.equal(sample.text, material.text)


def test_the_last_steps_draw_the_whole_clip(material):
    settings = TemporalConfig(sparse_frames=9, steps=4, whole_share=0.5)
    sparse = SparseClip(material, settings)
    draw = clip_draw(sparse, settings)
    for step in range(1, 5):
        sample = draw(torch.Generator().manual_seed(0), 2, step)
        latents, positions = sparse.draw(torch.Generator().manual_seed(0))
        assert torch.equal(sample.text, material.text)
        if step > 2:
            assert torch.equal(sample.latents, material.latents[None]) and sample.positions is None
        else:
            assert torch.equal(sample.latents, torch.stack([latents, latents]))
            assert torch.equal(sample.positions, positions)


def test_several_clips_come_equally_often_each_with_its_caption(material):
    dark = replace(material.clip, frames=255 - material.clip.frames)
    other = Material(material.family, dark, "a dark square", material.cache_dir)
    draw = one_of([frame_draw(material), frame_draw(other)])
    generator = torch.Generator().manual_seed(0)
    firsts = 0
    for _ in range(200):
        sample = draw(generator, 1, 1)
        owner = material if torch.equal(sample.text, material.text) else other
        assert any(torch.equal(sample.latents[0], frame) for frame in owner.frame_latents)
        firsts += owner is material
    assert 70 < firsts < 130


def test_one_clip_takes_no_random_number_for_it(material):
    """So a run without other looks is the run it was before there were any."""
    settings = TemporalConfig(sparse_frames=9)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    one_of([clip_draw(SparseClip(material, settings), settings)])(generator, 1, 1)
    assert torch.equal(generator.get_state(), before)
