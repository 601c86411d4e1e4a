"""gated_residual: x + y * gate."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("gated_residual", "reference", reference.gated_residual)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, *, backend: str | None = None) -> Tensor:
    """x + y * gate, one read of each tensor and one write.

    x, y: (B,S,d) of one dtype; gate: (B,d) or (B,S,d), any float dtype. Returns (B,S,d) in the dtype of x.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("gated_residual", x, backend)
    return run(x, y, gate)
