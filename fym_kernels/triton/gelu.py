# mypy: disable-error-code="no-untyped-def"
"""gelu on Triton: x / (1 + e) with e = exp(-2 u), u = sqrt(2/pi) (x + 0.044715 x^3).

forward(x) -> out                                              saves x
backward(grad, x) -> grad_x                                    s + x s (1 - s) 2 u' with s = 1 / (1 + e)

x, grad of one shape and dtype, copied if not contiguous. Minimal traffic: each tensor read once and written
once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import INTERPRETED, accumulation, ceil_div, config, launch, warps_for

SLOPE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2/pi)
CUBIC = tl.constexpr(0.044715)
# beyond, GELU is x or 0 to within 1e-24, and its slope 1 or 0; held to it, e stays finite
FARTHEST = tl.constexpr(8.5)


@triton.jit
def _exp_of_twice(held):
    return tl.exp((held * held * CUBIC + 1) * held * -SLOPE)


@triton.jit
def _hold(x):
    """x in [-FARTHEST, FARTHEST]; NaN stays."""
    x = tl.where(x < -FARTHEST, -FARTHEST, x)
    return tl.where(x > FARTHEST, FARTHEST, x)


@triton.jit
def _forward_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, ACC: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0).to(ACC)
    held = tl.where(x < -FARTHEST, -FARTHEST, x)
    out = held / (1 + _exp_of_twice(_hold(x)))
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < count)


def forward(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(_forward_kernel, x, out)
    return out


@triton.jit
def _backward_kernel(grad_ptr, x_ptr, grad_x_ptr, count, BLOCK: tl.constexpr, ACC: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = _hold(tl.load(x_ptr + at, mask=at < count, other=0).to(ACC))
    grad = tl.load(grad_ptr + at, mask=at < count, other=0).to(ACC)
    e = _exp_of_twice(x)
    s = 1 / (1 + e)
    derivative = s + x * s * (e * s) * ((x * x * (3 * CUBIC) + 1) * SLOPE)
    tl.store(grad_x_ptr + at, (grad * derivative).to(grad_x_ptr.dtype.element_ty), mask=at < count)


def backward(grad: Tensor, x: Tensor) -> Tensor:
    assert grad.shape == x.shape and grad.dtype == x.dtype
    grad, x = grad.contiguous(), x.contiguous()
    grad_x = torch.empty_like(x)
    _launch(_backward_kernel, grad, x, grad_x)
    return grad_x


def _launch(kernel, *tensors: Tensor) -> None:
    """`kernel` over all elements of contiguous tensors of one size."""
    like, block = tensors[0], 256 if INTERPRETED else 2048
    if like.numel():
        launch(
            kernel,
            (ceil_div(like.numel(), block),),
            *tensors,
            like.numel(),
            configs=(config(warps_for(block, like.element_size()), BLOCK=block),),
            ACC=accumulation(like.dtype),
        )
