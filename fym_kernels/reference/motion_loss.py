"""Flow-matching error plus the direction error of adjacent latent-frame differences."""

from __future__ import annotations

import torch
from torch import Tensor

from fym_kernels import checks

SMALLEST_NORM = 1e-8  # a pair of equal frames has no direction: its cosine counts as 0


def check(pred: Tensor, target: Tensor, weight: Tensor | None) -> None:
    checks.floating("pred", pred)
    checks.rank("pred", pred, "BCThw")
    checks.floating("target", target, pred)
    checks.shape("target", target, tuple(pred.shape))
    if weight is not None:
        checks.floating("weight", weight, pred)
        checks.shape("weight", weight, (pred.shape[0],))
    if pred.numel() == 0:
        raise ValueError(f"pred must not be empty: its mean is undefined, got shape {tuple(pred.shape)}")


def motion_loss(
    pred: Tensor, target: Tensor, weight: Tensor | None = None, *, motion_weight: float = 1.0
) -> Tensor:
    """mean(weight * (pred - target)^2) + motion_weight * mean(1 - cos of adjacent frame differences).

    pred, target: (B,C,T,h,w); weight: (B,), all ones when None, for the squared error only. The differences
    keep their sign and are flattened over C,h,w, so there is one cosine per sample and frame pair; with one
    frame there is none and the motion term is 0. Returns a scalar in the accumulation dtype (float32, or
    float64 for float64 input).
    """
    check(pred, target, weight)
    acc = checks.accumulation_dtype(pred.dtype)
    pred, target = pred.to(acc), target.to(acc)
    squared_error_B = (pred - target).square().flatten(1).mean(1)
    loss = (squared_error_B if weight is None else squared_error_B * weight.to(acc)).mean()
    if pred.shape[2] < 2 or motion_weight == 0:
        return loss
    return loss + motion_weight * (1 - _difference_cosine(pred, target)).mean()


def _difference_cosine(pred: Tensor, target: Tensor) -> Tensor:
    """(B,T-1): cosine between the frame differences of two (B,C,T,h,w)."""
    step_pred = pred.diff(dim=2).transpose(1, 2).flatten(2)
    step_target = target.diff(dim=2).transpose(1, 2).flatten(2)
    # vector_norm has the subgradient 0 at 0, where sqrt(sum of squares) would give nan
    norm_pred = torch.linalg.vector_norm(step_pred, dim=-1).clamp_min(SMALLEST_NORM)
    norm_target = torch.linalg.vector_norm(step_target, dim=-1).clamp_min(SMALLEST_NORM)
    return (step_pred * step_target).sum(-1) / (norm_pred * norm_target)
