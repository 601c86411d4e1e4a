"""The same work as naive.py on fym's own kernels: a Wan block, and the model while it is tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.bench.naive import stock_block
from fym.bench.shapes import Grid, Width
from fym.families.activations import approximated
from fym.families.base import AttentionControl, Family
from fym.families.wan_block import WanBlockForward, WanSelfAttention
from fym.losses import tuning_loss as fym_loss


def half_of_the_heads(heads: int, first: int = 0) -> list[int]:
    """Every second head: what a kind of heads amounts to on average."""
    return list(range(first, heads, 2))


def adapter(layers: int, heads: int, head_dim: int, rank: int, first: int = 0) -> HeadLora:
    """An adapter on half the heads whose B is not zero, so that every product has work to do."""
    active = [half_of_the_heads(heads, first)] * layers
    with torch.device("cpu"):  # which heads are active is a value, also where all else is shapes
        made = HeadLora(active, num_heads=heads, head_dim=head_dim, rank=rank, alpha=rank)
    for name, parameter in made.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.02)
    return made


def stack(*adapters: HeadLora) -> AdapterStack:
    """Of these adapters; which heads they have are values, also where all else is shapes."""
    with torch.device("cpu"):
        return AdapterStack([(made, 1.0) for made in adapters])


class Block(nn.Module):
    """One Wan block on fym_kernels, with an adapter on half its heads; see WanBlockForward."""

    def __init__(
        self, width: Width, rank: int, dtype: torch.dtype, grid: Grid, *, recompute_ffn: bool = False
    ) -> None:
        super().__init__()
        self.block = stock_block(width, dtype)
        self.adapter = adapter(1, width.heads, width.head_dim, rank)
        self.control = AttentionControl(stack(self.adapter), grid=grid)
        fuse(self.block, 0, self.control, width, recompute_ffn)

    def forward(self, hidden: Tensor, text: Tensor, temb: Tensor, tables: Any = None) -> Tensor:
        """hidden (B,S,d), text (B,L,d), temb (B,6,d); tables of RoPE are not needed."""
        out: Tensor = self.block(hidden, text, temb, tables)
        return out


def fuse(block: Any, layer: int, control: AttentionControl, width: Width, recompute_ffn: bool) -> None:
    """Our forward and self-attention in a stock block, as the Wan family does it, for good."""
    attention = block.attn1
    processor = WanSelfAttention(layer, control, width.axes_dim, attention.processor, attention)
    attention.set_processor(processor)
    block.forward = WanBlockForward(block, recompute_ffn=recompute_ffn)
    for module, method in approximated(block):
        setattr(module, method, fym_kernels.gelu)


def install(
    transformer: Any, width: Width, rank: int, grid: Grid, *, recompute_ffn: bool = False
) -> list[Tensor]:
    """Fuses all blocks of a stock transformer, with the adapters of stage 3; returns what is trained."""
    adapters = stage_three_adapters(width.layers, width.heads, width.head_dim, rank)
    control = AttentionControl(stack(*adapters), grid=grid)
    for layer, block in enumerate(transformer.blocks):
        fuse(block, layer, control, width, recompute_ffn)
    return list(adapters[1].parameters())


def stage_three_adapters(layers: int, heads: int, head_dim: int, rank: int) -> tuple[HeadLora, HeadLora]:
    """A frozen spatial and a trained temporal adapter, half of the heads each."""
    spatial, temporal = (adapter(layers, heads, head_dim, rank, first) for first in (0, 1))
    return spatial.requires_grad_(False), temporal


def tuning_loss(
    family: Family,
    noisy: Tensor,
    target: Tensor,
    timestep: Tensor,
    text: Tensor,
    weight: Tensor,
    motion_weight: float,
) -> Tensor:
    """The loss of one step, inside `family.attention(adapters=...)`."""
    return loss(family.predict(noisy, timestep, text), target, weight, motion_weight)


def loss(pred: Tensor, target: Tensor, weight: Tensor, motion_weight: float) -> Tensor:
    """The losses of stage 3; arguments as naive.motion_loss."""
    return fym_loss(pred, target, weight, motion_weight=motion_weight)
