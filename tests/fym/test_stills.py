"""Other scenes under a clip's camera: the stills are the model's, the motion is the clip's."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import MODELS

from fym import stills
from fym.camera import course, seen_from
from fym.families import load_family
from fym.generate import generate
from fym.stills import in_scenes, still
from fym.tracks import track
from fym.video import Clip

SCENES = ["a red meadow", "a blue street"]


def test_a_still_is_a_frame_of_the_model_and_is_made_once(tiny_family, tmp_path, monkeypatch):
    made = still(tiny_family, "a red meadow", (32, 48), tmp_path, seed=3, writes=True)
    [whole] = generate(
        tiny_family, ["a red meadow"], motion=None, seeds=[3], num_frames=1, height=32, width=48
    )
    assert made.shape == (32, 48, 3) and torch.equal(made, whole[0])
    with monkeypatch.context() as without:
        without.setattr(stills, "generate", None)
        assert torch.equal(still(tiny_family, "a red meadow", (32, 48), tmp_path, seed=3, writes=True), made)
    others = {"a blue street": 3, "a red meadow": 4}
    for scene, seed in others.items():
        assert not torch.equal(still(tiny_family, scene, (32, 48), tmp_path, seed=seed, writes=True), made)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", MODELS)
def test_every_family_draws_one(name, tiny_model, tmp_path):
    family = load_family(str(tiny_model(name)), dtype="float32", device="cpu")
    size = family.default_height, family.default_width
    made = still(family, "a meadow", size, tmp_path, seed=0, writes=False)
    assert made.shape == (*size, 3) and made.dtype == torch.uint8 and made.float().std() > 0


def test_every_clip_goes_over_every_scene(tiny_family, tmp_path, panned):
    clips = [Clip(frames, 8.0, "clip", "") for frames in (panned, panned.flip(0)[:9])]
    made = in_scenes(tiny_family, clips, SCENES, tmp_path, seed=5, writes=False)
    assert [caption for _, caption in made] == SCENES * 2
    assert [clip.frames.shape for clip, _ in made] == [(17, 32, 48, 3)] * 2 + [(9, 32, 48, 3)] * 2
    assert not list(tmp_path.iterdir())
    for number, (clip, caption) in enumerate(made):
        source = clips[number // 2]
        frame = still(tiny_family, caption, (32, 48), tmp_path, seed=5 + number % 2, writes=False)
        expected = seen_from(frame.numpy(), course(track(source.frames)))
        assert torch.equal(clip.frames, torch.from_numpy(expected)) and clip.path == source.path
    assert in_scenes(tiny_family, clips, [], tmp_path, seed=5, writes=False) == []
