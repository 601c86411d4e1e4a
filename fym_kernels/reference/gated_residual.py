"""x + y * gate, the end of each branch of a DiT block."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import checks


def check(x: Tensor, y: Tensor, gate: Tensor) -> None:
    checks.floating("x", x)
    checks.rank("x", x, "BSd")
    checks.floating("y", y, x)
    checks.same_dtype("y", y, "x", x)
    checks.shape("y", y, tuple(x.shape))
    checks.floating("gate", gate, x)
    checks.shape("gate", gate, (x.shape[0], x.shape[2]), tuple(x.shape))


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate; x, y (B,S,d), gate (B,d) or (B,S,d) of any float dtype -> (B,S,d) in the dtype of x."""
    check(x, y, gate)
    acc = checks.accumulation_dtype(x.dtype)
    gate = gate.to(acc)
    if gate.ndim == 2:
        gate = gate.unsqueeze(1)
    return (x.to(acc) + y.to(acc) * gate).to(x.dtype)
