"""CogVideoX's attention on fym_kernels: text and latents in one sequence, text first.

Query and key have a LayerNorm with weight and bias over each head. qk_norm_rope has RMSNorm only, so torch
computes that LayerNorm and the kernel turns: (16, 24, 24) of 64 channels, interleaved pairs. The 2B model has
no RoPE at all. Shapes: B batch, L tokens of the text, S of the latents, d channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.families.base import AttentionControl, OnQK
from fym.families.projections import check_plain, installed, project, project_out


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
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        out = project_out(attn, attended.transpose(1, 2).flatten(2, 3), control.stack, self.layer)
        text, latents = attn.to_out[1](out).split([text_tokens, length - text_tokens], dim=1)
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
    height, width = len(rows), len(columns)
    (top, left), (bottom, right) = get_resize_crop_region_for_grid((height, width), sample[1], sample[0])
    return (
        time,
        torch.linspace(top, bottom * (height - 1) / height, height, dtype=torch.float64),
        torch.linspace(left, right * (width - 1) / width, width, dtype=torch.float64),
    )


@contextmanager
def attention(
    transformer: Any,
    *,
    adapters: Sequence[tuple[HeadLora, float]] = (),
    time_positions: Tensor | None = None,
    on_qk: OnQK | None = None,
) -> Iterator[AttentionControl]:
    """As Family.attention, for a CogVideoXTransformer3DModel.

    An adapter acts on text and latents alike; on_qk sees the latents' tokens. Raises UserError for layers
    that take no adapter.
    """
    blocks, config = transformer.transformer_blocks, transformer.config
    if adapters:
        check_plain([block.attn1 for block in blocks])
    control = AttentionControl(AdapterStack(adapters), time_positions, on_qk)
    patch, patch_t = config.patch_size, config.patch_size_t
    sample = None if patch_t is not None else (config.sample_height // patch, config.sample_width // patch)
    processors = {
        f"transformer_blocks.{layer}.attn1.processor": CogVideoXAttention(layer, control, sample)
        for layer in range(len(blocks))
    }

    def note_grid(module: Any, inputs: tuple[Tensor, ...]) -> None:
        frames, height, width = (inputs[1].shape[i] for i in (1, 3, 4))  # latents (B,F',C,h,w)
        control.grid = -(-frames // (patch_t or 1)), height // patch, width // patch

    hook = transformer.patch_embed.register_forward_pre_hook(note_grid)
    try:
        with installed(transformer, processors):
            yield control
    finally:
        hook.remove()
