"""Tokenizer and text encoder of the embedded model: byte-level BPE over its captions, a tiny UMT5."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from fym.embedded.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, caption

MAX_TOKENS = 32
TEXT_DIM = 64


def _captions(count: int = 4000) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        phrase = MOTIONS[str(rng.choice(list(MOTIONS)))][0]
        yield caption(
            str(rng.choice(SHAPES)),
            str(rng.choice(list(COLOURS))),
            str(rng.choice(list(BACKGROUNDS))),
            phrase if rng.random() < 0.7 else "",
            str(rng.choice(list(SIZES))),
        )


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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=MAX_TOKENS
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
