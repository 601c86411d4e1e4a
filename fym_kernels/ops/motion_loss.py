"""motion_loss: weighted squared error plus the direction error of frame differences."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("motion_loss", "reference", reference.motion_loss)


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
    differentiable in pred and target. Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("motion_loss", pred, backend)
    return run(pred, target, weight, motion_weight=motion_weight)
