"""The backward kernels are the derivatives of the forward kernels, by finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton_parity import interpreted, poisoned_memory, randn  # noqa: F401

pytestmark = interpreted()

from fym_kernels.triton import head_attention, modulated_norm, motion_loss, qk_norm_rope  # noqa: E402


def check(forward: Callable[..., tuple[Any, Any]], backward: Callable[..., Any], *inputs: Tensor) -> None:
    """forward(*inputs) -> (outputs, saved); backward(grads, saved, *inputs) -> one gradient per input."""

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            outputs, ctx.saved = forward(*tensors)
            ctx.save_for_backward(*tensors)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(grads, ctx.saved, *ctx.saved_tensors)

    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(Op.apply, leaves, fast_mode=True)


def random(*shape: int, seed: int) -> Tensor:
    return randn(*shape, dtype=torch.float64, seed=seed)


def test_modulated_norm() -> None:
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Any, Any]:
        out, *saved = modulated_norm.forward(x, scale, shift, eps=1e-6)
        return out, saved

    def backward(grads: Any, saved: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Any:
        return modulated_norm.backward(grads[0], x, scale, *saved)

    check(forward, backward, random(1, 2, 6, seed=0), random(1, 6, seed=1), random(1, 6, seed=2))


def test_qk_norm_rope() -> None:
    positions = (torch.tensor([0.5, -3.25], dtype=torch.float64), torch.arange(1), torch.arange(1))
    options = {"axes_dim": (2, 2, 0), "norm": "across_heads", "rotate_from": 0, "interleaved": True}

    def forward(q: Tensor, k: Tensor, qw: Tensor, kw: Tensor) -> tuple[Any, Any]:
        return qk_norm_rope.forward(q, k, qw, kw, positions, theta=10.0, eps=1e-6, **options)

    def backward(grads: Any, saved: Any, q: Tensor, k: Tensor, qw: Tensor, kw: Tensor) -> Any:
        return qk_norm_rope.backward(*grads, q, k, qw, kw, saved, want_weights=(True, True), **options)

    heads = [random(1, 2, 3, 4, seed=seed) for seed in range(2)]
    check(forward, backward, *heads, *(random(12, seed=seed) for seed in (2, 3)))


def test_motion_loss() -> None:
    def forward(pred: Tensor, target: Tensor) -> tuple[Any, Any]:
        return motion_loss.forward(pred, target, None, motion_weight=0.7)

    def backward(grads: Any, saved: Any, pred: Tensor, target: Tensor) -> Any:
        return tuple(
            motion_loss.backward(grads[0], pred, target, saved, side=side) for side in ("pred", "target")
        )

    check(forward, backward, random(1, 1, 3, 1, 4, seed=0), random(1, 1, 3, 1, 4, seed=1))


def test_head_attention() -> None:
    kind = torch.tensor([1, 2], dtype=torch.int8)
    options = {"location_window": 1, "first_frame_sink": True}

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, Any]:
        out, lse = head_attention.forward(q, k, v, kind, (2, 1, 3), **options)
        return out, (out, lse)

    def backward(grads: Any, saved: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return head_attention.backward(grads[0], q, k, v, *saved, kind, (2, 1, 3), **options)

    check(forward, backward, *(random(1, 6, 2, 4, seed=seed) for seed in range(3)))
