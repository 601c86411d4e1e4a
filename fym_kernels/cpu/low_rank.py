"""lora_qkv and lora_linear on the CPU: the base GEMMs are torch's, the low-rank update is added in place.

s = x A^T for all factors A at once; y[active] += s (scale B)^T. Backward: dS = dy[active] (scale B),
dB = scale dy[active]^T s, dA = dS^T x, dx = dy W + dS A. The products of bfloat16 activations are taken in
bfloat16 with float32 sums (factors rounded to bfloat16), those of other dtypes in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Run = tuple[slice, slice]  # neighbouring active heads: their columns in the layer, and in the compact factor


def _runs(active_heads: Tensor | None, head_dim: int, width: int) -> list[Run]:
    if active_heads is None:
        return [(slice(0, width), slice(0, width))]
    runs: list[Run] = []
    for place, head in enumerate(active_heads.tolist()):
        start, compact = head * head_dim, place * head_dim
        if runs and runs[-1][0].stop == start:
            start, compact = runs[-1][0].start, runs[-1][1].start
            runs.pop()
        runs.append((slice(start, (head + 1) * head_dim), slice(compact, (place + 1) * head_dim)))
    return runs


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bfloat16 else torch.float32


def _columns(x: Tensor, runs: list[Run]) -> Tensor:
    """The runs' columns of (tokens, width) x, in the dtype products are taken in."""
    parts = [x[:, columns] for columns, _ in runs]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(_product_dtype(x.dtype))


def _add(y: Tensor, runs: list[Run], s: Tensor, factor: Tensor) -> None:
    """y[:, runs] += s factor; factor (r, compact width)."""
    for columns, compact in runs:
        if y.dtype == s.dtype:
            y[:, columns].addmm_(s, factor[:, compact])
        else:
            y[:, columns].add_(s @ factor[:, compact])


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _updates(rank: int, runs: list[Run], tokens: int) -> bool:
    return bool(rank and runs and tokens)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    read: list[Run],
    written: list[list[Run]],
    scale: float,
) -> tuple[list[Tensor], Tensor]:
    """The layers' outputs, and s (B,S,sum of ranks) float32."""
    outputs = [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    ranks = [a.shape[0] for a in lora_a]
    rows = _flat(x)
    if not (sum(ranks) and read and rows.numel() and any(written)):
        return outputs, x.new_zeros((*x.shape[:2], sum(ranks)), dtype=torch.float32)
    dtype = _product_dtype(x.dtype)
    stacked = torch.cat(list(lora_a)).to(dtype)
    s = _columns(rows, read) @ stacked.T
    for y, runs, b, part in zip(outputs, written, lora_b, s.split(ranks, 1), strict=True):
        if runs and part.shape[1]:
            _add(_flat(y), runs, part, (b * scale).to(dtype).T)
    return outputs, s.float().view(*x.shape[:2], -1)


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    s: Tensor,
    read: list[Run],
    written: list[list[Run]],
    scale: float,
    want_x: bool,
    want_factors: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, of the stacked A and of each B; of shape (0,) where not wanted."""
    grad_x = x.new_empty(0)
    rows = [_flat(g) for g in grads]
    if want_x:
        total = rows[0] @ weights[0]
        for g, w in itertools.islice(zip(rows, weights, strict=True), 1, None):
            total.addmm_(g, w)
        grad_x = total.view(x.shape)
    ranks = [a.shape[0] for a in lora_a]
    grad_a = lora_a[0].new_zeros((sum(ranks), lora_a[0].shape[1]) if want_factors else (0,))
    grad_b = [b.new_zeros(b.shape if want_factors else (0,)) for b in lora_b]
    if not (sum(ranks) and read and x.numel() and any(written)):
        return grad_x, grad_a, grad_b
    dtype = _product_dtype(x.dtype)
    grad_s = []
    parts = zip(rows, written, lora_b, grad_b, _flat(s).to(dtype).split(ranks, 1), strict=True)
    for g, runs, b, out, part in parts:
        active = _columns(g, runs) if runs else g[:, :0].to(dtype)
        grad_s.append(active @ (b * scale).to(dtype))
        if want_factors:
            out.copy_(active.T @ part).mul_(scale)
    all_s = torch.cat(grad_s, 1)
    if want_x:
        _add(_flat(grad_x), read, all_s, torch.cat(list(lora_a)).to(dtype))
    if want_factors:
        grad_a.copy_(all_s.T @ _columns(_flat(x), read))
    return grad_x, grad_a, grad_b


def _lora_qkv(x, wq, wk, wv, bq, bk, bv, aq, ak, av, b_q, b_k, b_v, active_heads, head_dim, scale):  # type: ignore[no-untyped-def]
    weights = (wq, wk, wv)
    written = [_runs(active_heads, head_dim, w.shape[0]) for w in weights]
    read = _runs(None, 0, x.shape[2])
    outputs, s = forward(x, weights, (bq, bk, bv), (aq, ak, av), (b_q, b_k, b_v), read, written, scale)
    return (*outputs, s)


def _lora_qkv_backward(  # type: ignore[no-untyped-def]
    grads, x, weights, lora_a, lora_b, active_heads, s, head_dim, scale, want_x, want_factors
):
    written = [_runs(active_heads, head_dim, w.shape[0]) for w in weights]
    read = _runs(None, 0, x.shape[2])
    grad_x, grad_a, grad_b = backward(
        grads, x, weights, lora_a, lora_b, s, read, written, scale, want_x, want_factors
    )
    return (grad_x, grad_a, *grad_b)


def _sides(
    active_heads: Tensor | None, head_dim: int, weight: Tensor, side: str
) -> tuple[list[Run], list[Run]]:
    """The columns of the input that are read, and of the output that are written."""
    d_out, d_in = weight.shape
    read = _runs(active_heads if side == "in" else None, head_dim, d_in)
    return read, _runs(active_heads if side == "out" else None, head_dim, d_out)


def _lora_linear(x, weight, bias, lora_a, lora_b, active_heads, head_dim, scale, side):  # type: ignore[no-untyped-def]
    read, written = _sides(active_heads, head_dim, weight, side)
    (out,), s = forward(x, (weight,), (bias,), (lora_a,), (lora_b,), read, [written], scale)
    return out, s


def _lora_linear_backward(  # type: ignore[no-untyped-def]
    grad, x, weight, lora_a, lora_b, active_heads, s, head_dim, scale, side, want_x, want_factors
):
    read, written = _sides(active_heads, head_dim, weight, side)
    grad_x, grad_a, (grad_b,) = backward(
        (grad,), x, (weight,), (lora_a,), (lora_b,), s, read, [written], scale, want_x, want_factors
    )
    return grad_x, grad_a, grad_b


torch.library.impl("fym_kernels::lora_qkv", "CPU", _lora_qkv)
torch.library.impl("fym_kernels::lora_qkv_backward", "CPU", _lora_qkv_backward)
torch.library.impl("fym_kernels::lora_linear", "CPU", _lora_linear)
torch.library.impl("fym_kernels::lora_linear_backward", "CPU", _lora_linear_backward)
