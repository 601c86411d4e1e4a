"""The embedded model's autoencoder marks where a clip begins, and loses nothing by it; how it is judged."""

from __future__ import annotations

import pytest
import torch

from fym.embedded.autoencoder import PatchAutoencoder
from fym.embedded.evaluate import held_out_cameras, judge_cameras
from fym.embedded.scenes import render


@pytest.fixture(scope="module")
def pair() -> tuple[PatchAutoencoder, PatchAutoencoder]:
    """The same weights without and with a mark."""
    torch.manual_seed(0)
    plain = PatchAutoencoder(width=16, encoder_blocks=1, decoder_blocks=1)
    marked = PatchAutoencoder(width=16, encoder_blocks=1, decoder_blocks=1, first_frame_mark=[2.0, -1.0] * 8)
    marked.load_state_dict(plain.state_dict())
    return plain, marked


def test_only_the_first_latent_frame_is_marked(pair) -> None:
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    plain, marked = (model.encode(video).latent_dist.mode() for model in pair)
    mark = torch.tensor([2.0, -1.0] * 8)[None, :, None, None]
    torch.testing.assert_close(marked[:, :, 0], plain[:, :, 0] + mark)
    assert torch.equal(marked[:, :, 1:], plain[:, :, 1:])


def test_decoding_takes_the_mark_away(pair) -> None:
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    plain, marked = (model.decode(model.encode(video).latent_dist.mode()).sample for model in pair)
    torch.testing.assert_close(marked, plain, rtol=0, atol=1e-5)


def test_a_camera_that_moves_as_its_caption_says_is_seen_to_and_a_reversed_one_not() -> None:
    scenes = held_out_cameras(12)
    clips = torch.stack([render(scene) for scene in scenes])
    followed, reversed_ = judge_cameras(clips, scenes), judge_cameras(clips.flip(1), scenes)
    assert followed.keys() == {"camera_cosine, photo", "camera_cosine, rough"}
    assert min(followed.values()) > 0.9
    assert max(reversed_.values()) < -0.9
