"""Whole diffusers pipelines of a few 10,000 random weights, written by save_pretrained; one for each model.

Biases and norm weights are random too: a layer that loses its own must show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FRAMES, HEIGHT, WIDTH = 17, 32, 48  # of the tiny models: 5 latent frames, 2 x 3 tokens each in most
TEXT_LENGTH = 16


def save_tiny_wan(folder: Path, *, seed: int = 0, **sizes: int) -> Path:
    """Wan 2.1. sizes: head_dim, heads, layers, ffn, vae_dim."""
    return _save_wan(folder, seed, **sizes)


def save_tiny_wan_a14b(folder: Path) -> Path:
    """Wan 2.2 with two experts; the low-noise one has weights of its own."""
    return _save_wan(folder, 0, experts=2, boundary_ratio=0.875)


def save_tiny_wan_5b(folder: Path, **sizes: int) -> Path:
    """Wan 2.2 TI2V: 16 x 16 pixels and 48 channels in a latent, a timestep for every token."""
    vae = {
        "z_dim": 48,
        "in_channels": 12,
        "out_channels": 12,
        "is_residual": True,
        "patch_size": 2,
        "latents_mean": [0.1] * 48,
        "latents_std": [0.9] * 48,
        "scale_factor_spatial": 16,
    }
    return _save_wan(folder, 0, channels=48, vae=vae, size=(64, 96), expand_timesteps=True, **sizes)


def _save_wan(
    folder: Path,
    seed: int,
    *,
    heads: int = 3,
    head_dim: int = 12,
    layers: int = 2,
    ffn: int = 32,
    vae_dim: int = 3,
    channels: int = 16,
    vae: dict[str, Any] | None = None,
    experts: int = 1,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    **options: Any,
) -> Path:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers = [
            scrambled(
                WanTransformer3DModel(
                    patch_size=(1, 2, 2),
                    num_attention_heads=heads,
                    attention_head_dim=head_dim,
                    in_channels=channels,
                    out_channels=channels,
                    text_dim=32,
                    freq_dim=256,
                    ffn_dim=ffn,
                    num_layers=layers,
                    cross_attn_norm=True,
                    qk_norm="rms_norm_across_heads",
                    rope_max_seq_len=32,
                )
            )
            for _ in range(experts)
        ]
        autoencoder = AutoencoderKLWan(
            base_dim=vae_dim,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            **(vae or {"z_dim": 16}),
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        )
    WanPipeline(
        tokenizer=letters(),
        text_encoder=text_encoder.eval(),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=transformers[0],
        transformer_2=transformers[1] if experts == 2 else None,
        **options,
    ).save_pretrained(folder)
    return _settings(folder, *size)


def save_tiny_hunyuan(folder: Path, *, heads: int = 2, head_dim: int = 10, layers: int = 1) -> Path:
    """HunyuanVideo: dual and twice as many single layers, a language model behind a template, CLIP.

    head_dim: a multiple of 10."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=layers,
            num_single_layers=2 * layers,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(head_dim // 5, head_dim * 2 // 5, head_dim * 2 // 5),
        )
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.476986,
        )
        tokenizer = words(_hunyuan_template())
        text_encoder = LlamaModel(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=4,
                pad_token_id=0,
            )
        )
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=300,
                hidden_size=8,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    HunyuanVideoPipeline(
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=scrambled(transformer),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip.eval(),
        tokenizer_2=letters(),
    ).save_pretrained(folder)
    return _settings(folder, HEIGHT, WIDTH, max_sequence_length=64)


def save_tiny_cogvideox(
    folder: Path, *, rope: bool = True, heads: int = 2, head_dim: int = 16, layers: int = 2
) -> Path:
    """CogVideoX 5B, or without rope 2B; the published schedule."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=layers,
            sample_width=WIDTH // 8,
            sample_height=HEIGHT // 8,
            sample_frames=FRAMES,
            patch_size=2,
            max_text_seq_length=TEXT_LENGTH,
            use_rotary_positional_embeddings=rope,
        )
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.7 if rope else 1.15258426,
        )
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        )
    CogVideoXPipeline(
        tokenizer=letters(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=scrambled(transformer),
        scheduler=CogVideoXDDIMScheduler(**COG_SCHEDULE, snr_shift_scale=1.0 if rope else 3.0),
    ).save_pretrained(folder)
    return _settings(folder, HEIGHT, WIDTH)


# diffusers, scripts/convert_cogvideox_to_diffusers.py; snr_shift_scale is 3 for 2B and 1 for 5B.
COG_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


MODELS = {
    "wan": save_tiny_wan,
    "wan-2.2-5b": save_tiny_wan_5b,
    "wan-2.2-14b": save_tiny_wan_a14b,
    "hunyuan_video": save_tiny_hunyuan,
    "cogvideox-2b": lambda folder: save_tiny_cogvideox(folder, rope=False),
    "cogvideox-5b": save_tiny_cogvideox,
}


def scrambled(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name and parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def _settings(folder: Path, height: int, width: int, **others: int) -> Path:
    settings = {
        "num_frames": FRAMES,
        "height": height,
        "width": width,
        "fps": 8,
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "max_sequence_length": TEXT_LENGTH,
    }
    (folder / "fym.json").write_text(json.dumps(settings | others))
    return folder


def letters() -> Any:
    """A real tokenizer that knows the 256 bytes and nothing more."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _fast(tokenizer)


def words(text: str) -> Any:
    """A tokenizer that knows the words of `text` and some for prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    split = pre_tokenizers.Whitespace()
    known = [word for word, _ in split.pre_tokenize_str(f"{text} a red blue square ball moves")]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *known]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return _fast(tokenizer, unk_token="<unk>")


def _fast(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="right", **special
    )


def _hunyuan_template() -> str:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    return str(DEFAULT_PROMPT_TEMPLATE["template"])
