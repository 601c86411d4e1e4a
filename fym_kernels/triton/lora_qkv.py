"""lora_qkv on Triton: query, key and value projections, low-rank update on the active heads' rows.

forward(x, query_weight, key_weight, value_weight, query_bias, key_bias, value_bias, query_a, key_a, value_a,
    query_b, key_b, value_b, active_heads, head_dim, scale) -> query, key, value, s
                                                              saves x, s and the factors, nothing else
backward(grads, x, weights, lora_a, lora_b, active_heads, s, head_dim, scale, want_x, want_factors)
    -> grad_x, grad_a (3r,d), grad_b of query, key, value     (0,) where not wanted

s = x A_all^T (B,S,3r) in the accumulation dtype. Without want_factors only shapes of x and s are looked at.
The three A's are stacked: one pass over x gives s, and one pass all of their gradients. The base GEMMs are
BLAS calls; the update is added into the active columns of their output. Base weights and biases are frozen
here. x, grads (B,S,d) in any strides (copied only if the last dimension is not dense).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fym_kernels.triton.common import accumulation_torch, dense_last
from fym_kernels.triton.low_rank import columns_of, expand, reduce, shrink


def _stack(factors: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
    """The factors below each other, and the rows of each."""
    ends = torch.tensor([0, *(f.shape[0] for f in factors)]).cumsum(0).tolist()
    return torch.cat(list(factors)), [slice(a, b) for a, b in itertools.pairwise(ends)]


def forward(
    x: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    query_a: Tensor,
    key_a: Tensor,
    value_a: Tensor,
    query_b: Tensor,
    key_b: Tensor,
    value_b: Tensor,
    active_heads: Tensor,
    head_dim: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    layers = ((query_weight, query_bias), (key_weight, key_bias), (value_weight, value_bias))
    query, key, value = (F.linear(x, weight, bias) for weight, bias in layers)
    stacked, parts = _stack((query_a, key_a, value_a))
    s = torch.empty(batch, tokens, stacked.shape[0], dtype=accumulation_torch(x.dtype), device=x.device)
    if active_heads.numel() and s.numel():
        x, flat = dense_last(x), s.flatten(0, 1)
        shrink(x, columns_of(width, None, None, x), stacked.t(), flat, 1.0)
        for out, b, part in zip((query, key, value), (query_b, key_b, value_b), parts, strict=True):
            if b.numel():
                expand(out, columns_of(out.shape[2], active_heads, head_dim, x), flat[:, part], b.t(), scale)
    else:
        s.zero_()
    return query, key, value, s


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    s: Tensor,
    head_dim: int,
    scale: float,
    want_x: bool,
    want_factors: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    stacked, parts = _stack(lora_a)
    updated = bool(active_heads.numel() and s.numel())
    grads = [dense_last(g) for g in grads]
    like = grads[0]
    active = [columns_of(g.shape[2], active_heads, head_dim, like) for g in grads]
    everything = columns_of(width, None, None, like)
    grad_s = torch.empty(batch * tokens, s.shape[2], dtype=accumulation_torch(like.dtype), device=like.device)
    if updated:
        for grad, columns, b, part in zip(grads, active, lora_b, parts, strict=True):
            if b.numel():
                shrink(grad, columns, b, grad_s[:, part], scale)

    grad_x, grad_a, grad_b = like.new_empty(0), stacked.new_empty(0), [b.new_empty(0) for b in lora_b]
    if want_x:
        flat = [g.flatten(0, 1) for g in grads]
        total = flat[0] @ weights[0]
        for grad, weight in zip(flat[1:], weights[1:], strict=True):
            total.addmm_(grad, weight)
        grad_x = total.view(x.shape)
        if updated:
            expand(grad_x, everything, grad_s, stacked, 1.0)
    if want_factors and updated:
        grad_a = reduce(dense_last(x), everything, grad_s, 1.0, stacked.dtype, rank_first=True)
        grad_b = [
            reduce(grad, columns, s.flatten(0, 1)[:, part], scale, b.dtype, rank_first=False)
            if b.numel()
            else torch.zeros_like(b)
            for grad, columns, b, part in zip(grads, active, lora_b, parts, strict=True)
        ]
    elif want_factors:
        grad_a, grad_b = torch.zeros_like(stacked), [torch.zeros_like(b) for b in lora_b]
    return grad_x, grad_a, *grad_b
