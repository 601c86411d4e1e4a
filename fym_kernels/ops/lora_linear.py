"""lora_linear: one projection with a low-rank update on the active heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.lora_linear import check


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scale: float,
    active_heads: Tensor | None = None,
    head_dim: int | None = None,
    side: str = "out",
    backend: str | None = None,
) -> Tensor:
    """x W^T + bias + scale * (x A^T) B^T, the update restricted to the active heads.

    x: (B,S,d_in) -> (B,S,d_out); weight: (d_out,d_in); bias: (d_out,) or None.
    active_heads: sorted unique int64, may be empty (the base alone); None = all, without head_dim.
    side="out": rows of the output; lora_a (r,d_in), lora_b (len*head_dim,r).
    side="in": columns of the input (to_out); lora_a (r,len*head_dim), lora_b (d_out,r).
    The factors have the dtype of x or a wider one. The native backends save x and x A^T (B,S,r) and compute
    the update of bfloat16 x with bfloat16 products and float32 sums.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("lora_linear", x, backend)
    return run(
        x, weight, bias, lora_a, lora_b, scale=scale, active_heads=active_heads, head_dim=head_dim, side=side
    )


def _run(
    op: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scale: float,
    active_heads: Tensor | None = None,
    head_dim: int | None = None,
    side: str = "out",
) -> Tensor:
    check(x, weight, bias, lora_a, lora_b, active_heads, head_dim, side)
    head_dim = 0 if active_heads is None or head_dim is None else head_dim
    out: Tensor = op(x, weight, bias, lora_a, lora_b, active_heads, head_dim, float(scale), side)[0]
    return out


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    s = x.new_empty((*x.shape[:2], lora_a.shape[0]), dtype=accumulation_dtype(x.dtype))
    return x.new_empty((*x.shape[:2], weight.shape[0])), s


def _fake_backward(
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
    return (
        x.new_empty(x.shape if want_x else (0,)),
        lora_a.new_empty(lora_a.shape if want_factors else (0,)),
        lora_b.new_empty(lora_b.shape if want_factors else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, lora_a, lora_b, heads, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.shapes = tuple(x.shape), tuple(output[1].shape)
    want_factors = any(ctx.needs_input_grad[3:5])
    read_x = x if want_factors or ctx.needs_input_grad[1] else None
    ctx.save_for_backward(read_x, output[1] if want_factors else None, weight, lora_a, lora_b, heads)


def _backward(op_backward: Any, ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    x, s, weight, lora_a, lora_b, heads = ctx.saved_tensors
    want_x, want_weight, want_bias, want_a, want_b = ctx.needs_input_grad[:5]
    x = native.unread(ctx.shapes[0], weight) if x is None else x
    s = native.unread(ctx.shapes[1], lora_a) if s is None else s
    grad_x, grad_a, grad_b = op_backward(
        grad, x, weight, lora_a, lora_b, heads, s, *ctx.options, want_x, want_a or want_b
    )
    return (
        grad_x if want_x else None,
        grad.flatten(0, 1).T @ x.flatten(0, 1) if want_weight else None,
        grad.sum((0, 1)) if want_bias else None,
        grad_a if want_a else None,
        grad_b if want_b else None,
        *(None, None, None, None),
    )


backends.register("lora_linear", "reference", reference.lora_linear)
native.describe(
    "lora_linear",
    run=_run,
    fakes={"lora_linear": _fake, "lora_linear_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
