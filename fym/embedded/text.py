"""Tokenizer and text encoder of the embedded model: byte-level BPE over its captions, a tiny UMT5."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from fym.embedded.scenes import captions
from fym.embedded.scenes.backgrounds import KINDS, PHOTOS
from fym.embedded.scenes.camera import CAMERA_MOVES
from fym.embedded.scenes.captions import caption
from fym.embedded.scenes.colours import BACKGROUNDS, COLOURS, TEXTURES
from fym.embedded.scenes.figure import FIGURE_MOTIONS
from fym.embedded.scenes.motions import MOTIONS
from fym.embedded.scenes.sampling import CHANGES
from fym.embedded.scenes.shapes import SHAPES

MAX_TOKENS = 32
TEXT_DIM = 64


def _captions(count: int = 4000) -> Iterator[str]:
    """Captions of the first version of the world: their tokens keep their ids."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        phrase = MOTIONS[str(rng.choice(list(MOTIONS)))][0]
        yield caption(
            str(rng.choice(SHAPES)),
            str(rng.choice(list(COLOURS))),
            str(rng.choice(list(BACKGROUNDS))),
            phrase if rng.random() < 0.7 else "",
            str(rng.choice(["small", "", "large"])),
        )


def new_words() -> list[str]:
    """Every word that captions of later versions of the world add, in a fixed order, the newest last."""
    phrases = [
        *(choice for choices in captions.SYNONYMS.values() for choice in choices),
        *captions.PLACES.values(),
        *captions.GROUND_FORMS,
        *TEXTURES,
        *KINDS,
        *PHOTOS,
        *CHANGES,
        *FIGURE_MOTIONS,
        *(move for move in CAMERA_MOVES if move != "wanders"),
        "to the left and right, the camera person figure",
        "wanders",
    ]
    words = " ".join(phrases).replace("{}", "").replace(",", "").split()
    return list(dict.fromkeys(words))


def _add_words(state: dict[str, Any], words: list[str]) -> None:
    """Make each word one token of a BPE model (`model` of a tokenizer.json) without changing any other.

    The new merges rank below all others, and join the pieces into which the old ones leave the word.
    """
    vocabulary, merges = state["vocab"], [tuple(m) for m in state["merges"]]
    rank = {pair: i for i, pair in enumerate(merges)}
    for word in words:
        pieces = ["Ġ", *word]
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
            at = pairs.index(best)
            joined = "".join(best)
            if best not in rank:
                rank[best] = len(merges)
                merges.append(best)
                vocabulary.setdefault(joined, len(vocabulary))
            pieces[at : at + 2] = [joined]
    state["merges"] = [list(m) for m in merges]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text can be encoded); every word of the captions is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _captions(),
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    state = json.loads(tokenizer.to_str())
    _add_words(state["model"], new_words())
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder with random weights."""
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str], length: int = MAX_TOKENS) -> Tensor:
    """(N, length) int64 token ids, padded with 0."""
    out = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return out.input_ids


def encode(encoder: UMT5EncoderModel, ids: Tensor, length: int) -> Tensor:
    """(N, length, 64): the encoder's states, zero on padding exactly as WanPipeline makes them."""
    mask = (ids != 0).long()
    states = encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
    return torch.nn.functional.pad(states, (0, 0, 0, length - ids.shape[1]))
