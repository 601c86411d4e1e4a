"""motion_loss: weighted squared error plus the direction error of frame differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.motion_loss import check


def motion_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    motion_weight: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """mean(weight * (pred - target)^2) + motion_weight * mean(1 - cos of adjacent frame differences).

    pred, target: (B,C,T,h,w) latents, T latent frames; weight: (B,) for the squared error, None = 1. One
    frame has no difference: its motion term is 0. The result is float32 (float64 for float64 input),
    differentiable in pred, target and weight (the last by the reference). The native kernels copy latents
    whose frames are not dense, and take any other stride as it is. Raises ValueError naming the argument
    that does not fit.
    """
    run = backends.choose("motion_loss", pred, backend)
    return run(pred, target, weight, motion_weight=motion_weight)


def _run(
    op: Any, pred: Tensor, target: Tensor, weight: Tensor | None = None, *, motion_weight: float = 1.0
) -> Tensor:
    check(pred, target, weight)
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        return reference.motion_loss(pred, target, weight, motion_weight=motion_weight)
    acc = accumulation_dtype(pred.dtype)
    target = target.to(acc) if target.dtype == torch.float64 else target
    loss: Tensor = op(pred, target, None if weight is None else weight.to(acc), motion_weight)[0]
    return loss


def _fake(
    pred: Tensor, target: Tensor, weight: Tensor | None, motion_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, frames, acc = pred.shape[0], pred.shape[2], accumulation_dtype(pred.dtype)
    shapes = ((), (batch, 3, frames), (batch,))
    loss, coefficients, error_scale = (pred.new_empty(s, dtype=acc) for s in shapes)
    return loss, coefficients, error_scale


def _fake_backward(
    grad_loss: Tensor, pred: Tensor, target: Tensor, coefficients: Tensor, error_scale: Tensor, side: str
) -> Tensor:
    own = pred if side == "pred" else target
    return own.new_empty(own.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    pred, target, _, _ = inputs
    _, coefficients, error_scale = output
    ctx.mark_non_differentiable(coefficients, error_scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(pred, target, coefficients, error_scale)


def _backward(op: Any, ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad[:2]
    if grad is None:
        return None, None, None, None
    sides = (
        op(grad, *ctx.saved_tensors, s) if n else None for s, n in zip(("pred", "target"), need, strict=True)
    )
    return *sides, None, None


backends.register("motion_loss", "reference", reference.motion_loss)
native.describe(
    "motion_loss",
    run=_run,
    fakes={"motion_loss": _fake, "motion_loss_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
