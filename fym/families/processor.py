"""Wan's self-attention on fym_kernels: projections with adapters, norm and RoPE at real positions, output.

A processor in the sense of diffusers: stateless but for what it was made with, called by WanAttention.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

import fym_kernels
from fym.adapters import AdapterStack
from fym.errors import UserError
from fym.families.base import AttentionControl


class WanSelfAttention:
    """Processor of one layer. axes_dim: head channels of the (time, row, column) axes of RoPE."""

    _attention_backend: Any = None  # diffusers sets these two on the instance where its user asks
    _parallel_config: Any = None

    def __init__(
        self, layer: int, control: AttentionControl, axes_dim: tuple[int, int, int], original: Any
    ) -> None:
        self.layer, self.control, self.axes_dim = layer, control, axes_dim
        self._attention_backend = getattr(original, "_attention_backend", None)
        self._parallel_config = getattr(original, "_parallel_config", None)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        control = self.control
        query, key, value = project(attn, hidden_states, control.stack, self.layer)
        query, key = normalise_rotate(attn, query, key, control.positions(), self.axes_dim)
        if control.on_qk is not None:
            control.on_qk(self.layer, query, key)
        attended = dispatch_attention_fn(
            query,
            key,
            value.unflatten(2, (attn.heads, -1)),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](project_out(attn, attended.flatten(2, 3), control.stack, self.layer))


def project(attn: Any, hidden: Tensor, stack: AdapterStack, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B,S,d) before the norm, with the stack's update."""
    update = stack.qkv(layer)
    if update is None:
        return attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
    q, k, v = fym_kernels.lora_qkv(
        hidden,
        (attn.to_q.weight, attn.to_k.weight, attn.to_v.weight),
        (attn.to_q.bias, attn.to_k.bias, attn.to_v.bias),
        (update.lora_a["q"], update.lora_a["k"], update.lora_a["v"]),
        (update.lora_b["q"], update.lora_b["k"], update.lora_b["v"]),
        update.heads,
        head_dim=attn.inner_dim // attn.heads,
        scale=update.scale,
    )
    return q, k, v


def project_out(attn: Any, attended: Tensor, stack: AdapterStack, layer: int) -> Tensor:
    """The output projection (B,S,d) with the stack's update."""
    update = stack.out(layer)
    linear = attn.to_out[0]
    if update is None:
        return linear(attended)
    return fym_kernels.lora_linear(
        attended,
        linear.weight,
        linear.bias,
        update.lora_a["o"],
        update.lora_b["o"],
        scale=update.scale,
        active_heads=update.heads,
        head_dim=attn.inner_dim // attn.heads,
        side="in",
    )


def normalise_rotate(
    attn: Any,
    query: Tensor,
    key: Tensor,
    positions: tuple[Tensor, Tensor, Tensor],
    axes_dim: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Query and key (B,S,d) as (B,S,H,D): RMSNorm over all heads together, then 3D RoPE."""
    return fym_kernels.qk_norm_rope(
        query.unflatten(2, (attn.heads, -1)),
        key.unflatten(2, (attn.heads, -1)),
        attn.norm_q.weight,
        attn.norm_k.weight,
        positions,
        axes_dim=axes_dim,
        eps=attn.norm_q.eps,
        norm="across_heads",
    )


def check_plain(attentions: list[Any]) -> None:
    """UserError unless every self-attention has plain linear layers, to which adapters can be added."""
    for number, attn in enumerate(attentions):
        if getattr(attn, "fused_projections", False):
            raise UserError(
                "The model's q, k and v are fused",
                "diffusers drops adapters on fused projections without a word",
                "Call transformer.unfuse_qkv_projections() first",
            )
        for name, linear in (
            ("to_q", attn.to_q),
            ("to_k", attn.to_k),
            ("to_v", attn.to_v),
            ("to_out.0", attn.to_out[0]),
        ):
            odd = _not_plain(linear)
            if odd:
                raise UserError(
                    f"Adapters cannot be added to {name} of block {number}",
                    f"it is a {odd}, not a plain linear layer",
                    "Unload other adapters with unload_lora_weights(), or load the model unquantised",
                )


def _not_plain(linear: Any) -> str:
    """What a layer is instead of a linear layer with float weights; empty for such a one."""
    if type(linear) is not torch.nn.Linear:
        return f"{type(linear).__module__.split('.')[0]} {type(linear).__name__}"
    if type(linear.weight) is not torch.nn.Parameter:  # torchao keeps the layer and wraps its weight
        return f"layer with a {type(linear.weight).__name__} weight"
    if linear.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"layer of {str(linear.weight.dtype).removeprefix('torch.')} weights"
    return ""
