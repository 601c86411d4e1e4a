"""Layers that keep less for the backward pass, by computing cheap things again from what is kept anyway.

A layer keeps query and key for its attention. RMSNorm's input is x = y / (w * rstd), so with rstd (one float
a token) the input need not be kept beside them; the rotation of RoPE is undone by turning back. And it keeps
the input of each LayerNorm: the normed tensor that an adapter's gradient needs is one pass away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

import fym_kernels
from fym.adapters import Update
from fym_kernels.ops import native
from fym_kernels.ops.qk_norm_rope import turn

_ACROSS_HEADS = "across_heads", 0, True  # norm, first token that rotates, pairs are neighbours
# Of the rounding error that rebuilding may add, in roundings of the output: see `rebuildable`.
MOST_ROUNDINGS = 4.0


def rebuildable(weight: Tensor, *, rotated: bool) -> bool:
    """Whether a norm's input can be rebuilt well from its output; reads the (frozen) weight back.

    A rotation mixes the channels of a pair, so a small one inherits the rounding of its large partner,
    |w_partner / w| times its own. The gradient of RMSNorm needs the rebuilt input only along one direction,
    where the errors of all channels average to their root mean square.
    """
    if weight.is_meta or isinstance(weight, FakeTensor):  # shapes only
        return True
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
    """fym_kernels.qk_norm_rope over all heads, (B,S,H,D), with frozen weights that are `rebuildable`.

    On the reference backend, and where nothing is trained, it is that function itself.
    """
    ops = native.operators("qk_norm_rope", query)
    trained = query.requires_grad or key.requires_grad
    if ops is None or not trained or torch.compiler.is_compiling():
        return fym_kernels.qk_norm_rope(
            query, key, query_weight, key_weight, positions, axes_dim=axes_dim, eps=eps
        )
    new_query, new_key = _QkNormRope.apply(
        query, key, query_weight, key_weight, positions, axes_dim, eps, ops
    )
    return new_query, new_key


class Normed(NamedTuple):
    """What fym_kernels.modulated_norm makes a tensor of."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    eps: float

    def __call__(self) -> Tensor:
        return fym_kernels.modulated_norm(self.x, self.scale, self.shift, eps=self.eps)


def lora_qkv(
    normed: Tensor,
    recipe: Normed | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    update: Update,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """fym_kernels.lora_qkv of `normed` = recipe(), which is computed again in the backward pass.

    Without a recipe, on the reference backend, and where nothing is trained it is that function itself.
    """
    factors = [pairs[p] for pairs in (update.lora_a, update.lora_b) for p in "qkv"]
    trained = torch.is_grad_enabled() and any(f.requires_grad for f in factors)
    ops = native.operators("lora_qkv", normed)
    if ops is None or recipe is None or not trained or torch.compiler.is_compiling():
        q, k, v = fym_kernels.lora_qkv(
            normed,
            weights,
            biases,
            factors[:3],
            factors[3:],
            update.heads,
            head_dim=head_dim,
            scale=update.scale,
        )
    else:
        recipe = recipe._replace(x=recipe.x.detach())
        rest = recipe, (*weights, *biases), update.heads, head_dim, float(update.scale), ops
        q, k, v = _LoraQkv.apply(normed, *factors, *rest)
    return q, k, v


class _LoraQkv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normed: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        factors, (recipe, bases, heads, ctx.head_dim, ctx.scale, (op, ctx.backward_op)) = args[:6], args[6:]
        q, k, v, s = op(normed, *bases, *factors, heads, ctx.head_dim, ctx.scale)
        ctx.eps = recipe.eps
        ctx.save_for_backward(*recipe[:3], s, heads, *bases[:3], *factors)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, s, heads, w_q, w_k, w_v, a_q, a_k, a_v, b_q, b_k, b_v = ctx.saved_tensors
        lora_a, lora_b = (a_q, a_k, a_v), (b_q, b_k, b_v)
        want_x = ctx.needs_input_grad[0]
        grad_x, grad_a, *grad_b = ctx.backward_op(
            grads,
            Normed(x, scale, shift, ctx.eps)(),
            (w_q, w_k, w_v),
            lora_a,
            lora_b,
            heads,
            s,
            ctx.head_dim,
            ctx.scale,
            want_x,
            True,
        )
        parts = *grad_a.split([a.shape[0] for a in lora_a]), *grad_b
        wanted = zip(parts, ctx.needs_input_grad[1:7], strict=True)
        return grad_x if want_x else None, *(g if need else None for g, need in wanted), *(None,) * 6


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
        ops: tuple[Any, Any],
    ) -> tuple[Tensor, Tensor]:
        ctx.positions, ctx.axes_dim, ctx.eps, (ctx.op, ctx.backward_op) = positions, axes_dim, eps, ops
        rotation = turn(query, positions, axes_dim)
        *out, query_rstd, key_rstd = ctx.op(
            query, key, query_weight, key_weight, *rotation, eps, *_ACROSS_HEADS
        )
        ctx.save_for_backward(*out, query_rstd, key_rstd, query_weight, key_weight)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, *rstds, query_weight, key_weight = ctx.saved_tensors
        weights = query_weight, key_weight
        back = turn(query, tuple(-position for position in ctx.positions), ctx.axes_dim)
        turned = ctx.op(query, key, None, None, *back, ctx.eps, "none", 0, True)[:2]
        inputs = [
            x.flatten(2).div_(weight.to(x.dtype)).div_(rstd.unsqueeze(-1)).unflatten(2, x.shape[2:])
            for x, weight, rstd in zip(turned, weights, rstds, strict=True)
        ]
        rotation = turn(query, ctx.positions, ctx.axes_dim)
        grad_query, grad_key, _, _ = ctx.backward_op(
            *grads, *inputs, *weights, *rstds, *rotation, *_ACROSS_HEADS, False, False
        )
        return grad_query, grad_key, *(None,) * 6
