"""lora_qkv on Triton: query, key and value projections, low-rank update on the active heads' rows.

forward(x, weights, biases, lora_a, lora_b, active_heads, *, head_dim, scale) -> (q, k, v), s
                                                              saves x, s and the factors, nothing else
backward(grads, x, weights, lora_a, lora_b, active_heads, s, *, head_dim, scale, want_x, want_factors)
    -> grad_x, (grad_a of q, k, v), (grad_b of q, k, v)       None where not wanted

The three A's are stacked: one pass over x gives s = x A_all^T (B*S, 3r), and one pass gives all of their
gradients. The base GEMMs are BLAS calls; the update is added into the active columns of their output. Base
weights and biases are frozen and get no gradient. x, grads (B,S,d) in any strides (copied only if the last
dimension is not dense).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fym_kernels.triton.common import accumulation_torch, dense_last
from fym_kernels.triton.low_rank import columns_of, expand, reduce, shrink

Three = tuple[Tensor, ...]


def _stack(factors: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
    """The factors below each other, and the rows of each."""
    ends = torch.tensor([0, *(f.shape[0] for f in factors)]).cumsum(0).tolist()
    return torch.cat(list(factors)), [slice(a, b) for a, b in itertools.pairwise(ends)]


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    *,
    head_dim: int,
    scale: float,
) -> tuple[Three, Tensor]:
    batch, tokens, width = x.shape
    outs = tuple(F.linear(x, w, None if biases is None else biases[i]) for i, w in enumerate(weights))
    stacked, parts = _stack(lora_a)
    s = torch.empty(batch * tokens, stacked.shape[0], dtype=accumulation_torch(x.dtype), device=x.device)
    if active_heads.numel() and s.numel():
        x = dense_last(x)
        shrink(x, columns_of(width, None, None, x), stacked.t(), s, 1.0)
        for out, b, part in zip(outs, lora_b, parts, strict=True):
            if b.numel():
                expand(out, columns_of(out.shape[2], active_heads, head_dim, x), s[:, part], b.t(), scale)
    else:
        s.zero_()
    return outs, s


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    s: Tensor,
    *,
    head_dim: int,
    scale: float,
    want_x: bool = True,
    want_factors: bool = True,
) -> tuple[Tensor | None, Three | None, Three | None]:
    batch, tokens, width = x.shape
    stacked, parts = _stack(lora_a)
    updated = bool(active_heads.numel() and s.numel())
    grads = [dense_last(g) for g in grads]
    active = [columns_of(g.shape[2], active_heads, head_dim, x) for g in grads]
    everything = columns_of(width, None, None, x)
    grad_s = torch.empty_like(s)
    if updated:
        for grad, columns, b, part in zip(grads, active, lora_b, parts, strict=True):
            if b.numel():
                shrink(grad, columns, b, grad_s[:, part], scale)

    grad_x = None
    if want_x:
        flat = [g.reshape(batch * tokens, -1) for g in grads]
        total = flat[0] @ weights[0]
        for grad, weight in zip(flat[1:], weights[1:], strict=True):
            total.addmm_(grad, weight)
        grad_x = total.view(x.shape)
        if updated:
            expand(grad_x, everything, grad_s, stacked, 1.0)
    if not want_factors:
        return grad_x, None, None
    if not updated:
        return grad_x, tuple(map(torch.zeros_like, lora_a)), tuple(map(torch.zeros_like, lora_b))
    grad_a = reduce(dense_last(x), everything, grad_s, 1.0, stacked.dtype, rank_first=True)
    grad_b = tuple(
        reduce(grad, columns, s[:, part], scale, b.dtype, rank_first=False)
        if b.numel()
        else torch.zeros_like(b)
        for grad, columns, b, part in zip(grads, active, lora_b, parts, strict=True)
    )
    return grad_x, tuple(grad_a[part] for part in parts), grad_b
