"""Training losses on the model family's prediction target.

pred, target (B,C,F',h,w) fp32; weight (B,), the schedule's loss weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fym_kernels


def tuning_loss(
    pred: Tensor, target: Tensor, weight: Tensor, *, motion_weight: float, anchor: int | None = None
) -> Tensor:
    """The scalar that is minimised: weighted MSE + motion_weight * motion term (+ the debiased term).

    The motion term compares signed differences of neighbouring latent frames by their direction, see
    `motion_term`; a single latent frame has none. anchor: a latent frame, turns on `debiased_term`.
    """
    if pred.shape[2] < 2:
        motion_weight = 0.0
    loss = fym_kernels.motion_loss(pred, target, weight, motion_weight=motion_weight)
    return loss if anchor is None else loss + debiased_term(pred, target, weight, anchor)


def flow_term(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over B of weight * MSE."""
    return (weight * (pred - target).square().flatten(1).mean(1)).mean()


def motion_term(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over B and frame pairs of 1 - cos(d_pred, d_target), d = v[k+1] - v[k] over C,h,w; 0 for one.

    Signed differences, never absolute ones: the sign is the direction of the motion."""
    if pred.shape[2] < 2:
        return pred.new_zeros(())
    d_pred, d_target = (v.diff(dim=2).transpose(1, 2).flatten(2) for v in (pred, target))
    return (1 - F.cosine_similarity(d_pred, d_target, dim=-1)).mean()


def debiased_term(pred: Tensor, target: Tensor, weight: Tensor, anchor: int, beta: float = 1.0) -> Tensor:
    """MotionDirector's appearance-debiased loss: the MSE of phi(v)_i = sqrt(beta^2 + 1) v_i - beta v_anchor,
    in which what all frames share with the anchor frame cancels (arXiv 2310.08465, eq. 6)."""
    anchored = [math.sqrt(beta**2 + 1) * v - beta * v[:, :, anchor : anchor + 1] for v in (pred, target)]
    return flow_term(anchored[0], anchored[1], weight)


@torch.no_grad()
def logged_terms(pred: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """(flow, motion) terms as numbers, for the log."""
    return float(flow_term(pred, target, weight)), float(motion_term(pred, target))
