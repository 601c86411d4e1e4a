"""CogVideoX's attention on fym_kernels: text and latents in one sequence, text first.

Query and key have a LayerNorm with weight and bias over each head. qk_norm_rope has RMSNorm only, so torch
computes that LayerNorm and the kernel turns: (16, 24, 24) of 64 channels, interleaved pairs. The 2B model has
no RoPE at all. Shapes: B batch, L tokens of the text, S of the latents, d channels, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fym_kernels
from fym.errors import UserError
from fym.families.base import AttentionControl, Defaults
from fym.families.pipeline import PipelineFamily
from fym.families.projections import attending, project, project_out
from fym.flow import VPrediction


class CogVideoXAttention:
    """Processor of one layer. sample: (H', W') tokens of the size that the model was trained at; None where
    positions are plain numbers (CogVideoX 1.5)."""

    def __init__(self, layer: int, control: AttentionControl, sample: tuple[int, int] | None) -> None:
        self.layer, self.control, self.sample = layer, control, sample

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        control, text_tokens = self.control, encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        batch, length, _ = tokens.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        query, key, value = (
            x.unflatten(2, (attn.heads, -1)) for x in project(attn, tokens, control.stack, self.layer)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            dim = query.shape[-1]
            query, key = fym_kernels.qk_norm_rope(
                query,
                key,
                None,
                None,
                positions(control, self.sample),
                axes_dim=(dim // 4, dim // 8 * 3, dim // 8 * 3),
                norm=None,
                rotate_from=text_tokens,
            )
        if control.on_qk is not None:
            control.on_qk(self.layer, query[:, text_tokens:], key[:, text_tokens:])
        band = control.band
        if band is not None:
            of_text, of_latents = torch.stack((query, key, value)).tensor_split([text_tokens], dim=2)
            query, key, value = torch.cat([band.text_by_heads(of_text), band.by_heads(of_latents)], dim=2)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask).transpose(1, 2)
        if band is not None:
            of_text, of_latents = attended.tensor_split([text_tokens], dim=1)
            attended = torch.cat([band.text_by_tokens(of_text), band.by_tokens(of_latents)], dim=1)
        out = project_out(attn, attended.flatten(2, 3), control.stack, self.layer)
        text, latents = attn.to_out[1](out).tensor_split([text_tokens], dim=1)
        return latents, text


def positions(control: AttentionControl, sample: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the (time, row, column) axes: CogVideoXPipeline's, but for time positions that were set.

    Clips of another size than the model's are fitted into its grid with their sides' ratio kept: rows and
    columns are evenly spaced real numbers.
    """
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    time, rows, columns = control.positions()
    if sample is None:
        return time, rows, columns
    size = control.whole_grid[1:]
    start, stop = get_resize_crop_region_for_grid(size, sample[1], sample[0])
    rows, columns = (
        first + places * (last * (n - 1) / n - first) / max(n - 1, 1)
        for places, first, last, n in zip((rows, columns), start, stop, size, strict=True)
    )
    return time, rows, columns


@contextmanager
def attention(transformer: Any, control: AttentionControl) -> Iterator[None]:
    """As `PipelineFamily.acting`, for a CogVideoXTransformer3DModel.

    An adapter acts on text and latents alike; on_qk sees the latents' tokens. Raises UserError for layers
    that take no adapter.
    """
    blocks, config = transformer.transformer_blocks, transformer.config
    patch, patch_t = config.patch_size, config.patch_size_t
    sample = None if patch_t is not None else (config.sample_height // patch, config.sample_width // patch)
    processors = {
        f"transformer_blocks.{layer}.attn1.processor": CogVideoXAttention(layer, control, sample)
        for layer in range(len(blocks))
    }

    def grid(inputs: tuple[Any, ...]) -> tuple[int, int, int]:
        frames, height, width = (inputs[1].shape[i] for i in (1, 3, 4))  # latents (B,F',C,h,w)
        return -(-frames // (patch_t or 1)), height // patch, width // patch

    embed = transformer.patch_embed
    moved = embed.register_forward_hook(lambda module, inputs, out: _move(module, out, control))
    try:
        with attending(transformer, control, [b.attn1 for b in blocks], processors, embed, grid):
            yield
    finally:
        moved.remove()


def _move(embed: Any, tokens: Tensor, control: AttentionControl) -> Tensor:
    """The 2B model has no RoPE but sines and cosines of a token's place added to it: a quarter of the
    channels for the time, then halves of the rest for column and row. Moves the latents' tokens from the
    places that count from 0 to the positions of `control`."""
    if (control.time_positions is None and control.band is None) or not embed.use_positional_embeddings:
        return tokens
    from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid

    moved = tokens.clone()
    latents = moved[:, -math.prod(control.grid) :].unflatten(1, control.grid)
    eighth, scale = tokens.shape[-1] // 8, embed.spatial_interpolation_scale
    channels = latents.split([2 * eighth, 3 * eighth, 3 * eighth], dim=-1)
    for part, axis, apart in zip(
        channels, (0, 2, 1), (embed.temporal_interpolation_scale, scale, scale), strict=True
    ):
        there = control.positions()[axis]
        new, old = (
            get_1d_sincos_pos_embed_from_grid(part.shape[-1], places / apart, output_type="pt")
            for places in (there, torch.arange(len(there), dtype=torch.float64))
        )
        shape = [len(there) if k == axis else 1 for k in range(3)]
        part += (new - old).to(part).view(*shape, -1)
    return moved


COG_DEFAULTS = Defaults(
    num_frames=49,
    height=480,
    width=720,
    fps=8,
    num_inference_steps=50,
    guidance_scale=6.0,
    max_sequence_length=226,
    training_shift=1.0,  # the schedule is not flow matching
)


class CogVideoXFamily(PipelineFamily):
    """CogVideoX 2B and 5B, text to video: v-prediction, latents (B,F',C,h,w) in the transformer."""

    name = "cogvideox"
    pipeline_class = "CogVideoXPipeline"
    tiled_vae = True
    block_lists = ("transformer_blocks",)

    def refuse(self) -> None:
        config, kind = self.transformer.config, self.pipeline.scheduler.config.prediction_type
        if config.patch_size_t is not None:
            raise UserError(
                f"{self.model_id} is a CogVideoX 1.5",
                "its tokens hold two latent frames, so a frame encoded alone is none of its clips",
                "Choose CogVideoX-2b or CogVideoX-5b",
            )
        if kind != "v_prediction":
            raise UserError(
                f"{self.model_id} predicts {kind}",
                "CogVideoX predicts v, and is tuned so",
                "Choose CogVideoX-2b or CogVideoX-5b",
            )

    def published(self) -> Defaults:
        return replace(COG_DEFAULTS, max_sequence_length=self.transformer.config.max_text_seq_length)

    def make_schedule(self) -> VPrediction:
        return VPrediction(tuple(self.pipeline.scheduler.alphas_cumprod.tolist()))

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.defaults.max_sequence_length, self.transformer.config.text_embed_dim

    def patch(self) -> tuple[int, int, int]:
        size = self.transformer.config.patch_size
        return 1, size, size

    def acting(self, control: AttentionControl) -> AbstractContextManager[None]:
        return attention(self.transformer, control)

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        batch, dtype = len(latents), self.dtype
        predicted = self.transformer(
            hidden_states=latents.to(self.device, dtype).transpose(1, 2),
            encoder_hidden_states=text.to(self.device, dtype).expand(batch, -1, -1),
            timestep=timestep.to(self.device),
            image_rotary_emb=self._rotary(latents.shape[-3:]),
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).float()

    def _rotary(self, size: torch.Size) -> tuple[Tensor, Tensor] | None:
        """The stock processor's tables; ours makes its own, and only looks whether there are any."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        if size not in self._tables:
            scale = self.pipeline.vae_scale_factor_spatial
            self._tables[size] = self.pipeline._prepare_rotary_positional_embeddings(
                size[1] * scale, size[2] * scale, size[0], self.device
            )
        return self._tables[size]

    @cached_property
    def _tables(self) -> dict[torch.Size, tuple[Tensor, Tensor]]:
        return {}

    def run(self, sampler: Any, text: Tensor, negative: Tensor | None, **options: Any) -> Tensor:
        frames = options["num_frames"]
        if frames % 8 != 1:
            raise UserError(
                f"{frames} frames do not fit the model",
                "its decoder takes pairs of latent frames after the first one, so frames must be 8k+1",
                f"Use --frames {max(frames // 8, 1) * 8 + 1}",
            )
        # The pipeline would decode in the transformer's dtype.
        latents = sampler(
            prompt_embeds=text, negative_prompt_embeds=negative, output_type="latent", **options
        )
        return self.decode_video(latents.frames[0].transpose(0, 1))
