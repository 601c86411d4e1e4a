"""The embedded model's autoencoder marks where a clip begins, and loses nothing by it."""

from __future__ import annotations

import pytest
import torch

from fym.embedded.autoencoder import PatchAutoencoder


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
