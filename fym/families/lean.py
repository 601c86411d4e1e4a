"""Norms that keep nothing of their own for the backward pass: they rebuild their input from their output.

A layer keeps query and key for its attention anyway. RMSNorm's input is x = y / (w * rstd), so with rstd (one
float a token) the input need not be kept beside them. The rotation of RoPE is undone by turning back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import fym_kernels

# Of the rounding error that rebuilding may add, in roundings of the output: see `rebuildable`.
MOST_ROUNDINGS = 4.0


def rebuildable(weight: Tensor, *, rotated: bool) -> bool:
    """Whether a norm's input can be rebuilt well from its output; reads the (frozen) weight back.

    A rotation mixes the channels of a pair, so a small one inherits the rounding of its large partner,
    |w_partner / w| times its own. The gradient of RMSNorm needs the rebuilt input only along one direction,
    where the errors of all channels average to their root mean square.
    """
    size = weight.detach().double().abs()
    if not bool((size > 0).all()) or not bool(size.isfinite().all()):
        return False
    if not rotated:
        return True
    pairs = size.unflatten(-1, (-1, 2))
    gain = (pairs.flip(-1) / pairs).clamp(min=1)
    return float(gain.square().mean().sqrt()) <= MOST_ROUNDINGS


def rms_norm(x: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
    """`norm(x)` for a frozen norm over the last dimension whose weight is `rebuildable`."""
    if not x.requires_grad or torch.compiler.is_compiling():
        return norm(x)
    out: Tensor = _RmsNorm.apply(x, norm.weight, norm.eps)
    return out


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    positions: tuple[Tensor, Tensor, Tensor],
    axes_dim: tuple[int, int, int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """fym_kernels.qk_norm_rope over all heads, (B,S,H,D), with frozen weights that are `rebuildable`."""
    if not (query.requires_grad or key.requires_grad) or torch.compiler.is_compiling():
        return fym_kernels.qk_norm_rope(
            query, key, query_weight, key_weight, positions, axes_dim=axes_dim, eps=eps
        )
    new_query, new_key = _QkNormRope.apply(query, key, query_weight, key_weight, positions, axes_dim, eps)
    return new_query, new_key


def _rstd(x: Tensor, eps: float) -> Tensor:
    """(..., 1) fp32: one over the root mean square of the last dimension."""
    norm = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return (norm.square_() / x.shape[-1] + eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = F.rms_norm(x, x.shape[-1:], weight, eps)
        ctx.save_for_backward(out, _rstd(x, eps), weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, rstd, weight = ctx.saved_tensors
        acc = rstd.dtype
        normed, scaled = out.to(acc) / weight.to(acc), grad.to(acc) * weight.to(acc)
        along = torch.linalg.vecdot(scaled, normed).unsqueeze(-1) / out.shape[-1]
        return scaled.addcmul_(normed, along, value=-1).mul_(rstd).to(out.dtype), None, None


class _QkNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        positions: tuple[Tensor, Tensor, Tensor],
        axes_dim: tuple[int, int, int],
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        out = fym_kernels.qk_norm_rope(
            query, key, query_weight, key_weight, positions, axes_dim=axes_dim, eps=eps
        )
        rstds = (_rstd(x.flatten(2), eps) for x in (query, key))
        ctx.save_for_backward(*out, *rstds, query_weight, key_weight)
        ctx.positions, ctx.axes_dim, ctx.eps = positions, axes_dim, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, query_rstd, key_rstd, query_weight, key_weight = ctx.saved_tensors
        back = tuple(-position for position in ctx.positions)
        turned = fym_kernels.qk_norm_rope(query, key, None, None, back, axes_dim=ctx.axes_dim, norm=None)
        inputs = []
        for x, weight, rstd in zip(turned, (query_weight, key_weight), (query_rstd, key_rstd), strict=True):
            flat = x.flatten(2).div_(weight.to(x.dtype)).div_(rstd)
            inputs.append(flat.unflatten(2, x.shape[2:]).requires_grad_())
        with torch.enable_grad():
            out = fym_kernels.qk_norm_rope(
                *inputs, query_weight, key_weight, ctx.positions, axes_dim=ctx.axes_dim, eps=ctx.eps
            )
        grad_query, grad_key = torch.autograd.grad(out, inputs, grads)
        return grad_query, grad_key, None, None, None, None, None
