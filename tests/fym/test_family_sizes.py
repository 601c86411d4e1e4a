"""The published models at true size, shapes only: every weight is on the meta device, which has no memory.

Transformers and VAEs are built from the configurations of diffusers' conversion scripts, which made the hub's
folders (scripts/convert_wan_to_diffusers.py, convert_hunyuan_video_to_diffusers.py: the class's defaults,
convert_cogvideox_to_diffusers.py). Each parameter count is the one that others report of the hub's weights.
"""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch

from fym.adapters import HeadLora
from fym.families.cogvideox import CogVideoXFamily
from fym.families.hunyuan_video import HunyuanVideoFamily
from fym.families.wan import WanFamily

META = torch.device("meta")
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
VAE_22 = {
    "base_dim": 160,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "decoder_base_dim": 256,
    "scale_factor_spatial": 16,
    "patch_size": 2,
    "latents_mean": [0.0] * 48,  # the values do not matter here
    "latents_std": [1.0] * 48,
}


@dataclass
class Size:
    """parameters: of the transformer that takes adapters. latents: (C,F',h,w) and tokens: of a clip of the
    published size. rank_one: weights of a rank 1 adapter on every head. text: of (1,L,d_text)."""

    transformer: dict[str, Any]
    parameters: int
    latents: tuple[int, int, int, int]
    tokens: int
    rank_one: int
    layers: tuple[int, ...]
    heads: int
    text: tuple[int, int] = (512, 4096)
    vae: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    experts: int = 1


# tokens: F' x rows x columns by hand, e.g. (1 + 80/4) x (480/16) x (832/16) = 21 x 30 x 52 = 32,760.
# rank_one: layers x projections x 2 x heads x head_dim, e.g. 30 x 4 x 2 x 1536 = 368,640. That of CogVideoX
# 5B times 128 is the 132,120,576 that finetrainers' docs print for rank 128.
SIZES = {
    "Wan2.1-T2V-1.3B": Size(
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        1_418_996_800,
        (16, 21, 60, 104),
        32_760,
        368_640,
        (30,),
        12,
    ),
    "Wan2.1-T2V-14B": Size(WAN_14B, 14_288_491_584, (16, 21, 60, 104), 32_760, 1_638_400, (40,), 40),
    "Wan2.2-T2V-A14B": Size(
        WAN_14B,
        14_288_491_584,
        (16, 21, 90, 160),
        75_600,
        1_638_400,
        (40,),
        40,
        options={"boundary_ratio": 0.875},
        experts=2,
    ),
    "Wan2.2-TI2V-5B": Size(
        {
            "num_attention_heads": 24,
            "num_layers": 30,
            "ffn_dim": 14336,
            "in_channels": 48,
            "out_channels": 48,
        },
        4_999_787_712,
        (48, 31, 44, 80),
        27_280,
        737_280,
        (30,),
        24,
        vae=VAE_22,
        options={"expand_timesteps": True},
    ),
    "HunyuanVideo": Size(
        {}, 12_821_012_544, (16, 33, 90, 160), 118_800, 1_105_920, (20, 40), 24, text=(257, 4097)
    ),
    "CogVideoX-2b": Size({}, 1_693_783_872, (16, 13, 60, 90), 17_550, 460_800, (30,), 30, text=(226, 4096)),
    "CogVideoX-5b": Size(
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        5_570_283_072,
        (16, 13, 60, 90),
        17_550,
        1_032_192,
        (42,),
        48,
        text=(226, 4096),
    ),
}


def build(name):
    size = SIZES[name]
    family, kind = next(
        (family, kind)
        for start, family, kind in (
            ("Wan", WanFamily, "Wan"),
            ("Hunyuan", HunyuanVideoFamily, "HunyuanVideo"),
            ("Cog", CogVideoXFamily, "CogVideoX"),
        )
        if name.startswith(start)
    )
    with META:
        made = [
            getattr(diffusers, f"{kind}Transformer3DModel")(**size.transformer) for _ in range(size.experts)
        ]
        vae = getattr(diffusers, f"AutoencoderKL{kind}")(**size.vae)
    scheduler = (
        diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        if kind == "CogVideoX"
        else diffusers.FlowMatchEulerDiscreteScheduler()
    )
    parts = {"transformer": made[0], "vae": vae, "scheduler": scheduler}
    parts |= dict.fromkeys((*family.encoders, *family.tokenizers))
    if size.experts == 2:
        parts["transformer_2"] = made[1]
    pipeline = getattr(diffusers, family.pipeline_class)(**parts, **size.options)
    return family(pipeline, name, device=META)


@pytest.fixture(scope="module", params=SIZES)
def model(request):
    return build(request.param), SIZES[request.param]


def test_parameters_layers_heads_and_tokens_are_those_of_the_published_model(model):
    family, size = model
    assert sum(p.numel() for p in family.transformer.parameters()) == size.parameters
    assert family.layer_groups == size.layers and family.num_heads == size.heads
    assert family.num_heads * family.head_dim == size.rank_one / sum(size.layers) / len(family.targets) / 2
    clip = family.defaults.num_frames, family.default_height, family.default_width
    assert family.tokens(*clip) == size.tokens
    family.check_size(*clip[1:])
    frames, rows, columns = family.grid(torch.empty(size.latents, device=META))
    assert frames * rows * columns == size.tokens


def test_the_vae_compresses_as_the_token_count_assumes(model):
    """On a small clip; all sizes scale."""
    family, size = model
    channels, _, rows, columns = size.latents
    factor = family.default_height // rows
    assert factor == family.default_width // columns == family.pipeline.vae_scale_factor_spatial
    clip = torch.zeros(9, 64, 96, 3, dtype=torch.uint8, device=META)
    assert family.encode_video(clip).shape == (channels, 3, 64 // factor, 96 // factor)
    assert family.encode_video(clip[:1]).shape == (channels, 1, 64 // factor, 96 // factor)


def test_adapters_on_all_heads_have_the_size_of_a_plain_lora(model):
    family, size = model
    adapter = adapter_on(family, range(family.num_heads))
    assert adapter.num_parameters() == size.rank_one


def test_a_tuning_step_runs_through_every_layer(model):
    """Forward and backward at the published resolution on 9 frames, an adapter on two heads of each layer."""
    family, size = model
    channels, _, rows, columns = size.latents
    adapter, seen = adapter_on(family, [0, family.num_heads - 1]), []
    with family.attention(
        adapters=[(adapter, 1.0)], on_qk=lambda layer, q, k: seen.append((layer, q.shape, k.shape))
    ):
        latents = torch.empty(1, channels, 3, rows, columns, device=META)
        family.lowest_noise = 0.0  # asks for the values of timesteps, which are not there
        predicted = family.predict(
            latents, torch.empty(1, device=META), torch.empty(1, *size.text, device=META)
        )
    assert predicted.shape == latents.shape
    tokens = family.tokens(9, family.default_height, family.default_width)
    shape = (1, tokens, family.num_heads, family.head_dim)
    assert seen == [(layer, shape, shape) for layer in range(sum(size.layers))]
    predicted.sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in adapter.parameters())
    assert all(p.grad is None for p in family.transformer.parameters())


def adapter_on(family, heads):
    return HeadLora(
        [list(heads)] * family.num_layers,
        num_heads=family.num_heads,
        head_dim=family.head_dim,
        rank=1,
        alpha=1.0,
        targets=family.targets,
    )
