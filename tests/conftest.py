"""Fixtures shared by the tests: tiny Wan pipelines with random weights, written by save_pretrained."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

FRAMES, HEIGHT, WIDTH = 17, 32, 48  # of the tiny model: 5 latent frames of 2 x 3 tokens
TEXT_LENGTH = 16


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as at a terminal: a shell that starts pytest in the background lets it ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def save_tiny_wan(
    folder: Path, *, head_dim: int = 12, heads: int = 3, layers: int = 2, seed: int = 0
) -> Path:
    """A whole WanPipeline folder of a few 10,000 random weights, as save_pretrained writes it.

    The biases are random too: a layer that loses its bias must show. Norm weights likewise.
    """
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.2)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        )
    WanPipeline(
        tokenizer=_letters(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    settings = {
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "fps": 8,
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "max_sequence_length": TEXT_LENGTH,
    }
    (folder / "fym.json").write_text(json.dumps(settings))
    return folder


def _letters():  # type: ignore[no-untyped-def]
    """A real tokenizer that knows the 256 bytes and nothing more."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_wan(head_dim=12, ...) gives the folder of such a model, made once in a session."""
    made: dict[tuple[tuple[str, int], ...], Path] = {}

    def folder(**options: int) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            name = "-".join(["wan", *(f"{k}{v}" for k, v in key)])
            made[key] = save_tiny_wan(tmp_path_factory.mktemp("models") / name, **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_family(tiny_wan):  # type: ignore[no-untyped-def]
    """The tiny model with head_dim 12, loaded in fp32 on the CPU; tests leave it as they found it."""
    from fym.families import load_family

    return load_family(str(tiny_wan()), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def moving_square() -> torch.Tensor:
    """(F,H,W,3) uint8: a bright square that crosses a dark, textured ground."""
    generator = torch.Generator().manual_seed(1)
    ground = torch.randint(0, 60, (HEIGHT, WIDTH, 3), generator=generator)
    frames = ground.repeat(FRAMES, 1, 1, 1)
    for f in range(FRAMES):
        frames[f, 10:20, 2 + 2 * f : 12 + 2 * f] = torch.tensor([240, 160, 40])
    return frames.to(torch.uint8)


@pytest.fixture(scope="session")
def make_adapter():  # type: ignore[no-untyped-def]
    """make_adapter(heads, ...) gives an adapter for the tiny model with random values in A and B."""
    from fym.adapters import HeadLora

    def make(heads, *, rank=3, alpha=1.5, seed=0, targets="qkvo", std=0.4):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        adapter = HeadLora(
            heads, num_heads=3, head_dim=12, rank=rank, alpha=alpha, targets=targets, generator=generator
        )
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        return adapter

    return make
