"""HunyuanVideo's attention on fym_kernels: tokens of the latents and of the text in one sequence.

Two kinds of layers, numbered one after the other: in dual layers the text has projections and norms of its
own; in single ones it shares the latents', and an adapter acts on both. Order: latents, then text. RMSNorm
per head; RoPE on the latents' tokens: (16, 56, 56) channels, interleaved pairs, theta 256.
Shapes: B batch, S tokens of the latents, L of the text, d channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.families.base import AttentionControl, OnQK
from fym.families.projections import check_plain, installed, project, project_out


class HunyuanVideoAttention:
    """Processor of one layer. axes_dim: head channels of the (time, row, column) axes of RoPE."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(
        self,
        layer: int,
        control: AttentionControl,
        axes_dim: tuple[int, int, int],
        theta: float,
        original: Any,
    ) -> None:
        self.layer, self.control, self.axes_dim, self.theta = layer, control, axes_dim, theta
        self._attention_backend = getattr(original, "_attention_backend", None)
        self._parallel_config = getattr(original, "_parallel_config", None)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        control, dual = self.control, attn.add_q_proj is not None
        latent_tokens, heads = hidden_states.shape[1], (attn.heads, -1)
        tokens = hidden_states if dual else torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = (x.unflatten(2, heads) for x in project(attn, tokens, control.stack, self.layer))
        query, key = fym_kernels.qk_norm_rope(
            query,
            key,
            attn.norm_q.weight,
            attn.norm_k.weight,
            control.positions(),
            axes_dim=self.axes_dim,
            theta=self.theta,
            eps=attn.norm_q.eps,
            norm="per_head",
        )
        if control.on_qk is not None:
            control.on_qk(self.layer, query[:, :latent_tokens], key[:, :latent_tokens])
        if dual:
            text = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (
                linear(encoder_hidden_states).unflatten(2, heads) for linear in text
            )
            query = torch.cat([query, attn.norm_added_q(text_query)], dim=1)
            key = torch.cat([key, attn.norm_added_k(text_key)], dim=1)
            value = torch.cat([value, text_value], dim=1)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        ).flatten(2, 3)
        latents, text_out = attended.split([latent_tokens, attended.shape[1] - latent_tokens], dim=1)
        if not dual:
            return latents, text_out
        latents = attn.to_out[1](project_out(attn, latents, control.stack, self.layer))
        return latents, attn.to_add_out(text_out)


@contextmanager
def attention(
    transformer: Any,
    *,
    adapters: Sequence[tuple[HeadLora, float]] = (),
    time_positions: Tensor | None = None,
    on_qk: OnQK | None = None,
) -> Iterator[AttentionControl]:
    """As Family.attention, for a HunyuanVideoTransformer3DModel; its text refiner is left alone.

    on_qk sees the latents' tokens. Raises UserError for layers that take no adapter; ValueError where an
    adapter targets "o" in a single layer, which has no output projection of its own.
    """
    dual, single = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    attentions = [block.attn for block in dual + single]
    if adapters:
        check_plain(attentions)
    for adapter, _ in adapters:
        if "o" in adapter.targets and any(len(heads) for heads in adapter.heads[len(dual) :]):
            raise ValueError('targets must be "qkv" for heads of single layers, got "qkvo"')
    control = AttentionControl(AdapterStack(adapters), time_positions, on_qk)
    rope = transformer.rope
    names = [f"transformer_blocks.{i}.attn.processor" for i in range(len(dual))]
    names += [f"single_transformer_blocks.{i}.attn.processor" for i in range(len(single))]
    originals = transformer.attn_processors
    processors = {
        name: HunyuanVideoAttention(layer, control, tuple(rope.rope_dim), rope.theta, originals[name])
        for layer, name in enumerate(names)
    }

    def note_grid(module: Any, inputs: tuple[Tensor, ...]) -> None:
        frames, height, width = inputs[0].shape[-3:]
        patch = module.patch_size
        control.grid = frames // module.patch_size_t, height // patch, width // patch

    hook = rope.register_forward_pre_hook(note_grid)
    try:
        with installed(transformer, processors):
            yield control
    finally:
        hook.remove()
