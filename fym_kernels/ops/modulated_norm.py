"""modulated_norm: LayerNorm(x) * (1 + scale) + shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.modulated_norm import check

CUDA_MOST_WIDTH = 8192  # norm_most_width of csrc/cuda/modulated_norm.cuh


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """LayerNorm of x (no affine) * (1 + scale) + shift, statistics in float32.

    x: (B,S,d); scale, shift: (B,d) or (B,S,d), any float dtype. Returns (B,S,d) in the dtype of x.
    The native kernels copy views whose last dimension is not dense, and take any other stride as it is.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("modulated_norm", x, backend)
    return run(x, scale, shift, eps=eps)


def _run(op: Any, x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6) -> Tensor:
    check(x, scale, shift, eps)
    acc = accumulation_dtype(x.dtype)
    scale, shift = (v.to(acc) if v.dtype == torch.float64 else v for v in (scale, shift))
    out: Tensor = op(x, scale, shift, eps)[0]
    return out


def _cuda_limit(x: Tensor) -> str:
    if x.ndim == 0 or x.shape[-1] <= CUDA_MOST_WIDTH:
        return ""
    return f"the cuda kernel holds rows of at most {CUDA_MOST_WIDTH} channels, got {x.shape[-1]}"


def _fake(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
    shift_per_token: bool,
    want_x: bool,
    want_scale: bool,
    want_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shift_shape = x.shape if shift_per_token else (x.shape[0], x.shape[2])
    return (
        x.new_empty(x.shape if want_x else (0,)),
        scale.new_empty(scale.shape if want_scale else (0,)),
        x.new_empty(shift_shape if want_shift else (0,), dtype=mean.dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.shift_per_token, ctx.shift_dtype = shift.ndim == 3, shift.dtype
    ctx.save_for_backward(x, scale, mean, rstd)


def _backward(op: Any, ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    x, scale, mean, rstd = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    grad_x, grad_scale, grad_shift = op(grad, x, scale, mean, rstd, ctx.shift_per_token, *need)
    grads = grad_x, grad_scale, grad_shift.to(ctx.shift_dtype)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None


backends.register("modulated_norm", "reference", reference.modulated_norm)
native.describe(
    "modulated_norm",
    run=_run,
    fakes={"modulated_norm": _fake, "modulated_norm_backward": _fake_backward},
    save=_save,
    backward=_backward,
    limits={"cuda": _cuda_limit},
)
