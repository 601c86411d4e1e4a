"""gated_residual: x + y * gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.gated_residual import check


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, *, backend: str | None = None) -> Tensor:
    """x + y * gate, one read of each tensor and one write.

    x, y: (B,S,d) of one dtype; gate: (B,d) or (B,S,d), any float dtype. Returns (B,S,d) in the dtype of x.
    The native kernels copy views whose last dimension is not dense, and take any other stride as it is.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("gated_residual", x, backend)
    return run(x, y, gate)


def _run(op: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    check(x, y, gate)
    if gate.dtype == torch.float64:
        gate = gate.to(accumulation_dtype(x.dtype))
    out: Tensor = op(x, y, gate)
    return out


def _fake(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad: Tensor, y: Tensor, gate: Tensor, want_y: bool, want_gate: bool
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape if want_y else (0,)), gate.new_empty(gate.shape if want_gate else (0,))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    _, y, gate = inputs
    need_y, need_gate = ctx.needs_input_grad[1:3]
    ctx.save_for_backward(y if need_gate else None, gate if need_y or need_gate else None)


def _backward(op: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    y, gate = ctx.saved_tensors
    need_x, need_y, need_gate = ctx.needs_input_grad
    grad_y = grad_gate = None
    if need_y or need_gate:
        y = grad if y is None else y  # unread unless the gate's gradient is wanted
        grad_y, grad_gate = op(grad, y, gate, need_y, need_gate)
    return grad if need_x else None, grad_y if need_y else None, grad_gate if need_gate else None


backends.register("gated_residual", "reference", reference.gated_residual)
native.describe(
    "gated_residual",
    run=_run,
    fakes={"gated_residual": _fake, "gated_residual_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
