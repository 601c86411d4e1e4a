"""lora_qkv: query, key and value projections with a low-rank update on the active heads' rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.lora_qkv import check


def lora_qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    *,
    head_dim: int,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (B,S,d_out): x W_i^T + b_i, plus scale * (x A_i^T) B_i^T for the active heads.

    x: (B,S,d_in); weights: three (d_out,d_in); biases: three (d_out,) or None; lora_a: three (r,d_in);
    lora_b: three (len(active_heads)*head_dim, r), the active rows only; active_heads: sorted unique int64,
    may be empty. Factors: the dtype of x or wider. The other heads' columns equal the base projection bit
    for bit. The native backends save x and x A^T (B,S,3r) for the backward pass and compute the update of
    bfloat16 x with bfloat16 products and float32 sums. Raises ValueError naming the argument that does not
    fit.
    """
    run = backends.choose("lora_qkv", x, backend)
    query, key, value = run(x, weights, biases, lora_a, lora_b, active_heads, head_dim=head_dim, scale=scale)
    return query, key, value


def _run(
    op: Any,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    *,
    head_dim: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, weights, biases, lora_a, lora_b, active_heads, head_dim)
    biases = (None, None, None) if biases is None else biases
    query, key, value, _ = op(x, *weights, *biases, *lora_a, *lora_b, active_heads, head_dim, float(scale))
    return query, key, value


def _fake(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights, lora_a = args[:3], args[6:9]
    query, key, value = (x.new_empty((*x.shape[:2], weight.shape[0])) for weight in weights)
    rank = sum(a.shape[0] for a in lora_a)
    return query, key, value, x.new_empty((*x.shape[:2], rank), dtype=accumulation_dtype(x.dtype))


def _fake_backward(
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
) -> tuple[Tensor, ...]:
    rank = sum(a.shape[0] for a in lora_a)
    return (
        x.new_empty(x.shape if want_x else (0,)),
        lora_a[0].new_empty((rank, x.shape[2]) if want_factors else (0,)),
        *(b.new_empty(b.shape if want_factors else (0,)) for b in lora_b),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """x once, s = x A^T, and the parameters: nothing else of the size of the tokens."""
    x, weights, factors, (heads, ctx.head_dim, ctx.scale) = inputs[0], inputs[1:4], inputs[7:13], inputs[13:]
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)
    ctx.shapes = tuple(x.shape), tuple(output[3].shape)
    want_weights, want_factors = any(ctx.needs_input_grad[1:4]), any(ctx.needs_input_grad[7:13])
    read_x = x if want_weights or want_factors else None
    ctx.save_for_backward(read_x, output[3] if want_factors else None, *weights, *factors, heads)


def _backward(op_backward: Any, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    x, s, *parameters, heads = ctx.saved_tensors
    weights, lora_a, lora_b = parameters[:3], parameters[3:6], parameters[6:]
    want_x, want_weights, want_biases, want_factors = (
        ctx.needs_input_grad[i:j] for i, j in ((0, 1), (1, 4), (4, 7), (7, 13))
    )
    full = [
        w.new_zeros((*ctx.shapes[0][:2], w.shape[0])) if g is None else g
        for g, w in zip(grads[:3], weights, strict=True)
    ]
    x = native.unread(ctx.shapes[0], weights[0]) if x is None else x
    s = native.unread(ctx.shapes[1], lora_a[0]) if s is None else s
    grad_x, grad_a, *grad_b = op_backward(
        full, x, weights, lora_a, lora_b, heads, s, ctx.head_dim, ctx.scale, want_x[0], any(want_factors)
    )
    factors = (*grad_a.split([a.shape[0] for a in lora_a]), *grad_b) if any(want_factors) else (None,) * 6
    return (
        grad_x if want_x[0] else None,
        *(
            g.flatten(0, 1).T @ x.flatten(0, 1) if n else None
            for g, n in zip(full, want_weights, strict=True)
        ),
        *(g.sum((0, 1)) if n else None for g, n in zip(full, want_biases, strict=True)),
        *(f if n else None for f, n in zip(factors, want_factors, strict=True)),
        *(None, None, None),
    )


backends.register("lora_qkv", "reference", reference.lora_qkv)
native.describe(
    "lora_qkv",
    run=_run,
    fakes={"lora_qkv": _fake, "lora_qkv_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
