"""The vocabulary grew: old ids stay valid, new words are one token, captions fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from fym.embedded import model_path, text
from fym.embedded.scenes import sample_scene
from fym.embedded.train_dit import build_transformer, load_weights, object_cells


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return text.build_tokenizer()


def test_the_ids_of_the_shipped_model_are_kept(tokenizer) -> None:
    shipped = json.loads((model_path() / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    vocabulary = tokenizer.get_vocab()
    assert all(vocabulary[token] == id_ for token, id_ in shipped.items())


def test_captions_of_the_first_version_keep_their_tokens(tokenizer) -> None:
    old = PreTrainedTokenizerFast.from_pretrained(model_path() / "tokenizer")
    for prompt in text._captions(200):
        assert tokenizer(prompt).input_ids == old(prompt).input_ids


def test_every_word_is_one_token_and_every_caption_fits(tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    for seed in range(400):
        prompt = sample_scene(np.random.default_rng((4, seed))).prompt
        words = prompt.replace(",", " ,").split()
        assert all("Ġ" + word in vocabulary or word == "," for word in words), prompt
        ids = tokenizer(prompt).input_ids
        assert len(ids) == len(words) + 1 <= text.MAX_TOKENS


def test_any_text_survives_the_round_trip(tokenizer) -> None:
    for prompt in ("a Zebra café, 3 x 4!", "the stripeds rougher", "größer"):
        assert tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True).strip() == prompt


def test_shipped_weights_load_into_a_larger_vocabulary(tokenizer) -> None:
    size = len(tokenizer) + 7
    modules = nn.ModuleDict(
        {"transformer": build_transformer(), "text_encoder": text.build_text_encoder(size)}
    )
    rope = nn.Module()
    rope.rope = modules["transformer"].rope
    modules["transformer"].rope = rope
    before = modules["text_encoder"].shared.weight.detach().clone()
    load_weights(modules, model_path())
    after = modules["text_encoder"].shared.weight
    old = json.loads((model_path() / "text_encoder" / "config.json").read_text())["vocab_size"]
    assert after.shape == (size, text.TEXT_DIM)
    assert not torch.equal(after[:old], before[:old])
    assert torch.equal(after[old:], before[old:])


def test_object_cells_cover_the_object_in_its_latent_frame() -> None:
    masks = torch.zeros(2, 9, 48, 48)
    masks[0, 0, 9, 9] = 1.0  # first frame, cell (1, 1)
    masks[1, 6, 40, 3] = 1.0  # frame 6 lies in latent frame 2, cell (5, 0)
    cells = object_cells(masks)
    assert cells.shape == (3, 6, 6) and cells.sum() == 2
    assert cells[0, 1, 1] and cells[2, 5, 0]
    assert object_cells(masks[:0]).sum() == 0
