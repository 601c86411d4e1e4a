"""The naive implementation that everything is measured against: diffusers' own modules and PEFT, eager.

It is what one writes with the two libraries and nothing else: every head has an adapter, every projection is
a PEFT layer, every element-wise step an op of its own. The functions repeat lines of diffusers'
WanAttnProcessor and WanTransformerBlock, so that one op can be timed alone. Adapters are in the model's dtype
(PEFT's default, float32 adapters in a bfloat16 model, would be slower and keep more). B batch, S tokens, d
width, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from fym.bench.shapes import LATENT_CHANNELS, Grid, Width

TARGETS = r".*attn1\.(to_q|to_k|to_v|to_out\.0)"
BUSY = 0.02  # standard deviation of a B that is not zero, so that every product has work to do
KEPT_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")  # as from_pretrained does

# --- one op at a time ---


def rotary_tables(width: Width, grid: Grid) -> tuple[Tensor, Tensor]:
    """cos and sin, (1,S,1,D) float32 each, as the transformer makes them once a step."""
    rope = WanRotaryPosEmbed(width.head_dim, (1, 1, 1), 1024)
    cos, sin = rope(torch.empty(1, 1, *grid))
    return cos.float(), sin.float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B,S,H,D), interleaved pairs."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out.type_as(x)


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    norm_q: nn.Module,
    norm_k: nn.Module,
    tables: tuple[Tensor, Tensor],
    heads: int,
) -> tuple[Tensor, Tensor]:
    """query, key (B,S,d) to (B,S,H,D)."""
    query, key = norm_q(query).unflatten(2, (heads, -1)), norm_k(key).unflatten(2, (heads, -1))
    return rotate(query, *tables), rotate(key, *tables)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B,S,d); scale, shift (B,1,d) float32."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift).type_as(x)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x, y (B,S,d); gate (B,1,d) float32."""
    return (x.float() + y.float() * gate).type_as(x)


def gelu(x: Tensor) -> Tensor:
    """What diffusers' GELU does after its projection."""
    return F.gelu(x, approximate="tanh")


def motion_loss(pred: Tensor, target: Tensor, weight: Tensor, motion_weight: float) -> Tensor:
    """Weighted MSE plus 1 - cos of signed frame differences; pred, target (B,C,F',h,w), weight (B,)."""
    flow = (weight * (pred - target).square().flatten(1).mean(1)).mean()
    if pred.shape[2] < 2:
        return flow
    d_pred, d_target = (v.diff(dim=2).transpose(1, 2).flatten(2) for v in (pred, target))
    return flow + motion_weight * (1 - F.cosine_similarity(d_pred, d_target, dim=-1)).mean()


class LoraProjections(nn.Module):
    """Projections of one input, query, key and value unless named otherwise, each wrapped by PEFT."""

    def __init__(
        self, d: int, rank: int, dtype: torch.dtype, names: Sequence[str] = ("to_q", "to_k", "to_v")
    ) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(d, d, dtype=dtype).requires_grad_(False))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names))
        inject_adapter_in_model(config, self)
        _start_adapters(self, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name)(x) for name in self.names)


# --- the block and the model ---


class Block(nn.Module):
    """One WanTransformerBlock with a PEFT LoRA on its self-attention, weights frozen."""

    def __init__(self, width: Width, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.block = stock_block(width, dtype)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), self)
        _start_adapters(self, dtype)

    def forward(self, hidden: Tensor, text: Tensor, temb: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """hidden (B,S,d), text (B,L,d), temb (B,6,d)."""
        out: Tensor = self.block(hidden, text, temb, tables)
        return out


def stock_block(width: Width, dtype: torch.dtype) -> WanTransformerBlock:
    """A frozen block with the dtypes that from_pretrained(dtype=...) leaves."""
    block = WanTransformerBlock(width.d, width.ffn_dim, width.heads, cross_attn_norm=True)
    return to_dtype(block, dtype).requires_grad_(False)


def stock_transformer(width: Width, dtype: torch.dtype) -> WanTransformer3DModel:
    """A frozen Wan transformer of this width, with random weights."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width.heads,
        attention_head_dim=width.head_dim,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        ffn_dim=width.ffn_dim,
        num_layers=width.layers,
    )
    return to_dtype(model, dtype).requires_grad_(False)


def to_dtype(module: nn.Module, dtype: torch.dtype) -> Any:
    """Everything in `dtype` but what diffusers keeps in float32."""
    for name, parameter in module.named_parameters():
        kept = any(part in KEPT_FLOAT32 for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    for part in module.modules():  # our block looks at the values of norms, also where there are only shapes
        weight = part._parameters.get("weight")
        if weight is not None and weight.is_meta and weight.ndim == 1:
            for name, old in part._parameters.items():
                if old is not None:
                    part._parameters[name] = nn.Parameter(torch.ones_like(old, device="cpu"))
    return module


def add_adapters(
    transformer: Any, rank: int, names: Sequence[str] = ("spatial", "temporal"), *, std: float = BUSY
) -> list[Tensor]:
    """PEFT adapters `names` all active, only the last one trained; returns its parameters.

    Those that are there already stay as they are; the B of a new one has standard deviation `std`. Every head
    has every adapter: PEFT knows no heads.
    """
    for name in names:
        if name not in getattr(transformer, "peft_config", {}):
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
            transformer.add_adapter(config, adapter_name=name)
            _start_adapters(transformer, transformer.dtype, std, name)
    transformer.set_adapters(list(names))
    trained = []
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(f".{names[-1]}." in name)
        if parameter.requires_grad:
            trained.append(parameter)
    return trained


def tuning_loss(
    transformer: Any,
    noisy: Tensor,
    target: Tensor,
    timestep: Tensor,
    text: Tensor,
    weight: Tensor,
    motion_weight: float,
    *,
    model: Any = None,
) -> Tensor:
    """The loss of one step: the stock transformer (or `model`, compiled of it) and the losses written out."""
    dtype = transformer.dtype
    pred = (transformer if model is None else model)(
        hidden_states=noisy.to(dtype),
        timestep=timestep,
        encoder_hidden_states=text.to(dtype).expand(len(noisy), -1, -1),
        return_dict=False,
    )[0].float()
    return motion_loss(pred, target, weight, motion_weight)


def _start_adapters(module: nn.Module, dtype: torch.dtype, std: float = BUSY, name: str = "default") -> None:
    """The adapter `name` in the dtype of the model, with a B of this standard deviation."""
    for path, parameter in module.named_parameters():
        if "lora_" in path and f".{name}." in path:
            parameter.data = parameter.data.to(dtype)
            if "lora_B" in path:
                nn.init.normal_(parameter, std=std)
