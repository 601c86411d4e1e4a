"""lora_linear on Triton: one linear layer plus a low-rank update restricted to whole heads.

forward(x, weight, bias, lora_a, lora_b, active_heads, head_dim, scale, side) -> out, s
                                                          saves x, s and the factors, nothing else
backward(grad, x, weight, lora_a, lora_b, active_heads, s, head_dim, scale, side, want_x, want_factors)
    -> grad_x, grad_a, grad_b                             (0,) where not wanted

s = x A^T (B,S,r) in the accumulation dtype. Without want_factors only the shapes of x and s are looked at.
side="out": the active heads' columns of the output change. side="in": only the active heads' columns of x are
read, and only they get the update's share of grad_x. The base GEMM is a BLAS call; weight and bias are frozen
and get no gradient. x, grad (B,S,d) in any strides (copied only if the last dimension is not dense).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fym_kernels.triton.common import accumulation_torch, dense_last
from fym_kernels.triton.low_rank import columns_of, expand, reduce, shrink


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    active_heads: Tensor | None,
    head_dim: int,
    scale: float,
    side: str,
) -> tuple[Tensor, Tensor]:
    batch, tokens, width = x.shape
    out = F.linear(x, weight, bias)
    s = torch.empty(batch, tokens, lora_a.shape[0], dtype=accumulation_torch(x.dtype), device=x.device)
    if lora_a.numel() == 0 or lora_b.numel() == 0 or s.numel() == 0:
        return out, s.zero_()
    x = dense_last(x)
    read = columns_of(width, active_heads if side == "in" else None, head_dim, x)
    written = columns_of(out.shape[2], active_heads if side == "out" else None, head_dim, x)
    shrink(x, read, lora_a.t(), s.flatten(0, 1), 1.0)
    expand(out, written, s.flatten(0, 1), lora_b.t(), scale)
    return out, s


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    active_heads: Tensor | None,
    s: Tensor,
    head_dim: int,
    scale: float,
    side: str,
    want_x: bool,
    want_factors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    updated = bool(lora_a.numel() and lora_b.numel() and s.numel())
    grad = dense_last(grad)
    read = columns_of(width, active_heads if side == "in" else None, head_dim, grad)
    written = columns_of(grad.shape[2], active_heads if side == "out" else None, head_dim, grad)
    grad_s = torch.empty(batch * tokens, s.shape[2], dtype=accumulation_torch(grad.dtype), device=grad.device)
    if updated:
        shrink(grad, written, lora_b, grad_s, scale)
    grad_x, grad_a, grad_b = grad.new_empty(0), lora_a.new_empty(0), lora_b.new_empty(0)
    if want_x:
        grad_x = (grad.flatten(0, 1) @ weight).view(x.shape)
        if updated:
            expand(grad_x, read, grad_s, lora_a, 1.0)
    if want_factors and updated:
        grad_a = reduce(dense_last(x), read, grad_s, 1.0, lora_a.dtype, rank_first=True)
        grad_b = reduce(grad, written, s.flatten(0, 1), scale, lora_b.dtype, rank_first=False)
    elif want_factors:
        grad_a, grad_b = torch.zeros_like(lora_a), torch.zeros_like(lora_b)
    return grad_x, grad_a, grad_b
