"""What tuning works on: the clip at the model's size, its latents, cached, and the sparsely picked frames."""

from dataclasses import replace

import pytest
import torch

from fym.config import ClipConfig, TemporalConfig, TuneConfig
from fym.config_file import default_config
from fym.embedded.scenes import render, unseen_scene
from fym.errors import UserError
from fym.material import Material, SparseClip, for_what_moves, read_references
from fym.video import Clip, write_clip


def test_the_clip_is_cut_to_whole_latent_frames_and_sized_for_the_model(tmp_path, tiny_family):
    path = tmp_path / "odd.mp4"
    write_clip(path, torch.randint(0, 255, (16, 70, 90, 3), dtype=torch.uint8), 8)
    [clip] = read_references(ClipConfig(path=[str(path)]), tiny_family)
    assert clip.frames.shape == (13, 32, 48, 3)
    with pytest.raises(UserError, match="multiple of 16"):
        read_references(ClipConfig(path=[str(path)], height=40), tiny_family)


def test_shapes(material):
    assert material.latents.shape == (16, 5, 4, 6)
    assert material.frame_latents.shape == (17, 16, 1, 4, 6)
    assert material.text.shape == (1, 16, 32)


def test_every_frame_is_encoded_alone(material, tiny_family):
    frames = material.clip.frames
    assert torch.equal(material.frame_latents[9], tiny_family.encode_video(frames[9:10]))


def test_the_second_time_nothing_is_encoded(material, tiny_family, monkeypatch):
    first = material.latents, material.frame_latents, material.text, material.encoded(torch.arange(9))
    again = Material(tiny_family, material.clip, "a square", material.cache_dir)
    monkeypatch.setattr(tiny_family, "encode_video", None)
    monkeypatch.setattr(tiny_family, "encode_prompts", None)
    second = again.latents, again.frame_latents, again.text, again.encoded(torch.arange(9))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("change", ["prompt", "pixel"])
def test_another_prompt_or_picture_is_not_mistaken_for_it(material, tiny_family, change):
    """The cache is keyed by all the result depends on."""
    _ = material.text, material.latents
    frames = material.clip.frames.clone()
    frames[8, 3, 4, 0] += change == "pixel"
    caption = "a circle" if change == "prompt" else "a square"
    other = Material(tiny_family, replace(material.clip, frames=frames), caption, material.cache_dir)
    files = len(list(material.cache_dir.iterdir()))
    _ = other.text, other.latents
    assert len(list(material.cache_dir.iterdir())) > files


def draw(material, seed=0, **options):
    sparse = SparseClip(material, TemporalConfig(sparse_frames=9, **options))
    return sparse.draw(torch.Generator().manual_seed(seed))


def test_uniform_picking_encodes_the_picked_frames(material, tiny_family):
    latents, positions = draw(material)
    assert torch.equal(latents, tiny_family.encode_video(material.clip.frames[::2]))
    assert positions.tolist() == [0, 2, 4]


def test_select_takes_latent_frames_of_the_whole_clip(material):
    latents, positions = draw(material, latents="select")
    assert torch.equal(latents, material.latents[:, [0, 2, 4]])
    assert positions.tolist() == [0, 2, 4]
    assert draw(material, latents="select", positions="none")[1].tolist() == [0, 1, 2]


def test_phase_draws_another_window_each_time(material):
    sparse = SparseClip(material, TemporalConfig(sparse_frames=9, picking="phase"))
    generator = torch.Generator().manual_seed(0)
    starts = {float(sparse.draw(generator)[1][0]) for _ in range(60)}
    assert starts == {k / 4 for k in range(9)}
    assert len(sparse.frame_index) == 9


def test_motion_picking_runs_on_the_clip(material):
    sparse = SparseClip(material, TemporalConfig(sparse_frames=9, picking="motion"))
    assert sparse.frame_index[0] == 0 and sparse.frame_index[-1] == 16


def test_a_clip_shorter_than_the_sampling_is_refused(material):
    with pytest.raises(UserError, match="--sparse-frames 17"):
        SparseClip(material, TemporalConfig(sparse_frames=21))


@pytest.mark.parametrize(("picking", "views"), [("uniform", 1), ("groups", 0)])
def test_encoding_in_advance_leaves_nothing_to_the_steps(material, monkeypatch, picking, views):
    """But for picked frames that are drawn anew, which have to be encoded then."""
    sparse = SparseClip(material, TemporalConfig(sparse_frames=9, picking=picking))
    sparse.encode()
    monkeypatch.setattr(material.family, "encode_video", None)
    monkeypatch.setattr(material.family, "encode_prompts", None)
    assert material.latents.shape[1] == 5 and len(material.text) == 1
    assert len(material.frame_latents) == 17
    if views:
        sparse.draw(torch.Generator())


@pytest.mark.parametrize(
    ("motion", "camera", "scenes"),
    [("square lap", False, False), ("camera round", True, True), ("camera turn", True, False)],
)
def test_a_moving_camera_is_learned_at_lower_noise_levels_and_over_scenes(motion, camera, scenes):
    """Of the rendered motions of one object, the square lap moves most of the picture."""
    clips, preset = [Clip(render(unseen_scene(motion)), 8.0, "clip", "")], default_config()
    found = for_what_moves(preset, clips)
    if camera:
        assert found.temporal.lowest_noise == preset.temporal.camera_lowest_noise > 0
        assert found.tune.looks == 1 and found.tune.scenes == (preset.tune.scenes if scenes else [])
        assert found.generate.guidance_scale == preset.temporal.camera_guidance > 0
        asked = replace(preset, generate=replace(preset.generate, guidance_scale=6.0))
        assert for_what_moves(asked, clips).generate.guidance_scale == 6.0
    else:
        assert found == replace(preset, tune=replace(preset.tune, scenes=[]))
    plain = replace(
        preset, temporal=TemporalConfig(lowest_noise=0.3), tune=replace(preset.tune, looks=1, scenes=[])
    )
    assert for_what_moves(plain, clips) == plain


def test_nothing_is_tracked_where_a_moving_camera_changes_nothing(monkeypatch):
    monkeypatch.setattr("fym.video.track", None)
    clips = [Clip(render(unseen_scene("camera round")), 8.0, "clip", "")]
    fast = replace(default_config(), temporal=TemporalConfig(), tune=TuneConfig())
    assert for_what_moves(fast, clips) == fast


@pytest.mark.parametrize(
    ("captions", "person"),
    [
        (["a blue person on a white background"], True),
        (["a dog", "Two WOMEN dance"], True),
        (["a manor on a human-sized hill"], False),
        (["a red circle on a grey background"], False),
    ],
)
def test_a_person_whom_the_caption_names_is_learned_at_lower_noise_levels(captions, person):
    preset = default_config()
    clip = replace(preset.clip, path=["x"] * len(captions), prompt=captions)
    config = replace(preset, clip=clip, tune=replace(preset.tune, scenes=[]))
    clips = [Clip(render(unseen_scene("square lap")), 8.0, "clip", "")] * len(captions)
    found = for_what_moves(config, clips)
    assert (found != config) == person
    if person:
        assert found.temporal.lowest_noise == preset.temporal.person_lowest_noise > 0
        assert found.generate.guidance_scale == preset.temporal.person_guidance > 0
        assert found.tune.looks == preset.tune.looks > 1
    still = replace(config, temporal=replace(config.temporal, person_lowest_noise=-1.0))
    assert for_what_moves(still, clips) == still
