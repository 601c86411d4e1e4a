"""Wan's transformer block on fym_kernels: norms with modulation, gates, self-attention with adapters.

The self-attention is a processor in the sense of diffusers; norm, modulation and gates stand in the block's
own forward, so that one is replaced. Numbers are the stock block's up to rounding; what is kept for the
backward pass is the input of each norm once, query, key, value and output of both attentions, and the
feed-forward network's input to GELU.
Shapes: B batch, S tokens, d channels, H heads, D head dim, L text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fym_kernels
from fym.families import lean
from fym.families.base import AttentionControl
from fym.families.projections import FLOATS, hooked, project, project_out
from fym.families.sharded import kind_of


class WanSelfAttention:
    """Processor of one layer. axes_dim: head channels of the (time, row, column) axes of RoPE."""

    _attention_backend: Any = None  # diffusers sets these two on the instance where its user asks
    _parallel_config: Any = None

    def __init__(
        self, layer: int, control: AttentionControl, axes_dim: tuple[int, int, int], original: Any, attn: Any
    ) -> None:
        self.layer, self.control, self.axes_dim = layer, control, axes_dim
        self._attention_backend = getattr(original, "_attention_backend", None)
        self._parallel_config = getattr(original, "_parallel_config", None)
        norms = (attn.norm_q, attn.norm_k)
        self.lean = all(_frozen(norm) and lean.rebuildable(norm.weight, rotated=True) for norm in norms)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        recipe: lean.Normed | None = None,
    ) -> Tensor:
        control = self.control
        query, key, value = project(attn, hidden_states, control.stack, self.layer, recipe)
        query, key = normalise_rotate(attn, query, key, control.positions(), self.axes_dim, self.lean)
        if control.on_qk is not None:
            control.on_qk(self.layer, query, key)
        value = value.unflatten(2, (attn.heads, -1))
        if control.band is not None:
            query, key, value = control.band.by_heads(torch.stack((query, key, value)))
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        if control.band is not None:
            attended = control.band.by_tokens(attended)
        return attn.to_out[1](project_out(attn, attended.flatten(2, 3), control.stack, self.layer))


def normalise_rotate(
    attn: Any,
    query: Tensor,
    key: Tensor,
    positions: tuple[Tensor, Tensor, Tensor],
    axes_dim: tuple[int, int, int],
    rebuild: bool = False,
) -> tuple[Tensor, Tensor]:
    """Query and key (B,S,d) as (B,S,H,D): RMSNorm over all heads together, then 3D RoPE.

    rebuild: keep the outputs only for the backward pass.
    """
    heads = (attn.heads, -1)
    query, key = query.unflatten(2, heads), key.unflatten(2, heads)
    weights, eps = (attn.norm_q.weight, attn.norm_k.weight), attn.norm_q.eps
    if rebuild:
        return lean.qk_norm_rope(query, key, *weights, positions, axes_dim, eps)
    return fym_kernels.qk_norm_rope(query, key, *weights, positions, axes_dim=axes_dim, eps=eps)


class WanBlockForward:
    """The forward of one WanTransformerBlock. recompute_ffn: run norm, up projection and GELU again in the
    backward pass rather than keep GELU's input."""

    def __init__(self, block: Any, *, recompute_ffn: bool = False) -> None:
        self.block, self.recompute_ffn = block, recompute_ffn
        self.inline_cross = _plain_cross_attention(block.attn2)
        norm = block.norm2
        self.affine = None
        if isinstance(norm, FP32LayerNorm):  # LayerNorm * w + b is a modulation by w - 1 and b
            self.affine = norm.weight.float()[None] - 1, norm.bias.float()[None]

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any
    ) -> Tensor:
        block, x = self.block, hidden_states
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self._modulation(temb)

        recipe = lean.Normed(x, scale, shift, block.norm1.eps)
        attended = block.attn1(recipe(), None, None, rotary_emb, recipe=recipe)
        x = fym_kernels.gated_residual(x, attended, gate)

        normed = x
        if self.affine is not None:
            weight, bias = (v.expand(len(x), -1) for v in self.affine)
            normed = fym_kernels.modulated_norm(x, weight, bias, eps=block.norm2.eps)
        x = x + self._cross_attention(normed, encoder_hidden_states)

        if self.recompute_ffn and x.requires_grad:
            branch = checkpoint(
                self._feed_forward, x, ffn_scale, ffn_shift, use_reentrant=False, preserve_rng_state=False
            )
        else:
            branch = self._feed_forward(x, ffn_scale, ffn_shift)
        return fym_kernels.gated_residual(x, branch, ffn_gate)

    def _modulation(self, temb: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the feed-forward branch: (B,d), or (B,S,d) where
        each token has its timestep (Wan 2.2 TI2V)."""
        table = self.block.scale_shift_table
        if temb.ndim == 4:  # (B,S,6,d)
            return (table.unsqueeze(0) + temb.float()).unbind(2)
        return (table + temb.float()).unbind(1)

    def _feed_forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normed = fym_kernels.modulated_norm(x, scale, shift, eps=self.block.norm3.eps)
        out: Tensor = self.block.ffn(normed)
        return out

    def _cross_attention(self, normed: Tensor, text: Tensor) -> Tensor:
        """(B,S,d) from the text (B,L,d); WanAttnProcessor with a query norm that keeps nothing."""
        attn = self.block.attn2
        if not self.inline_cross:
            out: Tensor = attn(normed, text, None, None)
            return out
        query, key, value = (
            x.unflatten(2, (attn.heads, -1))
            for x in (
                lean.rms_norm(attn.to_q(normed), attn.norm_q),
                attn.norm_k(attn.to_k(text)),
                attn.to_v(text),
            )
        )
        attended = dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend)
        return attn.to_out[1](attn.to_out[0](attended.flatten(2, 3)))  # type: ignore[no-any-return]


def why_stock(block: Any) -> str:
    """Why a block must keep its own forward; empty where `WanBlockForward` computes the same."""
    if kind_of(block) is not WanTransformerBlock:
        return f"the blocks are of class {type(block).__name__}"
    if hooked(block) and not isinstance(vars(block).get("forward"), WanBlockForward):  # ours may be nested
        return "another library has replaced the blocks' forward"
    for name in ("norm1", "norm2", "norm3"):
        norm = getattr(block, name)
        if name == "norm2" and type(norm) is torch.nn.Identity:
            continue
        if type(norm) is not FP32LayerNorm or hooked(norm):
            return f"{name} is a {type(norm).__name__}"
        if (norm.weight is not None) != (name == "norm2") or (name == "norm2" and not _frozen(norm)):
            return f"the weights of {name} are not the usual ones"
    if type(block.ffn) is not FeedForward:
        return f"the feed-forward network is a {type(block.ffn).__name__}"
    return ""


def _plain_cross_attention(attn: Any) -> bool:
    """Whether WanAttnProcessor would do what `_cross_attention` does, keeping more."""
    return (
        type(attn.processor) is WanAttnProcessor
        and attn.add_k_proj is None
        and not getattr(attn, "fused_projections", False)
        and not hooked(attn)
        and _frozen(attn.norm_q)
        and lean.rebuildable(attn.norm_q.weight, rotated=False)
    )


def _frozen(norm: Any) -> bool:
    """A norm with float weights that take no gradient and that nothing is hooked to."""
    weights = list(norm.parameters())
    return (
        bool(weights) and not hooked(norm) and all(not w.requires_grad and w.dtype in FLOATS for w in weights)
    )
