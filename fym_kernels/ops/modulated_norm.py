"""modulated_norm: LayerNorm(x) * (1 + scale) + shift."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("modulated_norm", "reference", reference.modulated_norm)


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """LayerNorm of x (no affine) * (1 + scale) + shift, statistics in float32.

    x: (B,S,d); scale, shift: (B,d) or (B,S,d), any float dtype. Returns (B,S,d) in the dtype of x.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("modulated_norm", x, backend)
    return run(x, scale, shift, eps=eps)
