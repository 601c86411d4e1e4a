# mypy: disable-error-code="no-untyped-def"
"""gated_residual on Triton: x + y * gate.

forward(x, y, gate) -> out                                     saves y, gate
backward(grad, y, gate, want_y, want_gate) -> grad_y, grad_gate, (0,) where not wanted; grad_x is grad

x, y, grad (B,S,d) of one dtype, any strides (copied only if the last dimension is not dense); gate (B,d) or
(B,S,d). Minimal traffic: each tensor read once and written once; a (B,d) gate's gradient adds fixed-order
partial sums of at most 256 rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import (
    accumulation,
    accumulation_torch,
    ceil_div,
    config,
    dense_last,
    launch,
    sum_partials,
    tile_of,
    token_splits,
)


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, gate_ptr, out_ptr, tokens, width,
    x_batch, x_token, y_batch, y_token, gate_batch, gate_token,
    PER_TOKEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < tokens) & (column < width)
    gate_offset = batch * gate_batch + column
    if PER_TOKEN:
        gate = tl.load(gate_ptr + gate_offset + row * gate_token, mask=inside, other=0)
    else:
        gate = tl.load(gate_ptr + gate_offset, mask=column < width, other=0)
    x = tl.load(x_ptr + batch * x_batch + row * x_token + column, mask=inside, other=0)
    y = tl.load(y_ptr + batch * y_batch + row * y_token + column, mask=inside, other=0)
    out = x.to(ACC) + y.to(ACC) * gate.to(ACC)
    offset = (batch * tokens + row) * width + column
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    assert y.shape == x.shape and y.dtype == x.dtype and gate.shape in ((batch, width), x.shape)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x, y, gate = dense_last(x), dense_last(y), dense_last(gate)
    rows, columns, warps = tile_of(width, x.element_size())
    launch(
        _forward_kernel,
        (ceil_div(tokens, rows), ceil_div(width, columns), batch),
        x, y, gate, out, tokens, width,
        x.stride(0), x.stride(1), y.stride(0), y.stride(1), gate.stride(0), gate.stride(1),
        configs=(config(warps, ROWS=rows, COLUMNS=columns),),
        PER_TOKEN=gate.ndim == 3,
        ACC=accumulation(x.dtype),
    )  # fmt: skip
    return out


@triton.jit
def _backward_kernel(
    grad_ptr, y_ptr, gate_ptr, grad_y_ptr, grad_gate_ptr, tokens, width, tokens_per_split,
    grad_batch, grad_token, y_batch, y_token, gate_batch, gate_token,
    PER_TOKEN: tl.constexpr, WANT_Y: tl.constexpr, WANT_GATE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    first = tl.program_id(0).to(tl.int64) * tokens_per_split
    total = tl.zeros([ROWS, COLUMNS], ACC)
    gate_offset = batch * gate_batch + column
    if WANT_Y and not PER_TOKEN:
        gate = tl.load(gate_ptr + gate_offset, mask=column < width, other=0).to(ACC)
    for start in range(0, tokens_per_split, ROWS):
        row = first + start + tl.arange(0, ROWS)[:, None]
        inside = (row < tokens) & (column < width)
        offset = (batch * tokens + row) * width + column
        grad = tl.load(grad_ptr + batch * grad_batch + row * grad_token + column, mask=inside, other=0)
        grad = grad.to(ACC)
        if WANT_Y:
            if PER_TOKEN:
                gate = tl.load(gate_ptr + gate_offset + row * gate_token, mask=inside, other=0).to(ACC)
            tl.store(grad_y_ptr + offset, (grad * gate).to(grad_y_ptr.dtype.element_ty), mask=inside)
        if WANT_GATE:
            y = tl.load(y_ptr + batch * y_batch + row * y_token + column, mask=inside, other=0)
            product = grad * y.to(ACC)
            if PER_TOKEN:
                tl.store(grad_gate_ptr + offset, product.to(grad_gate_ptr.dtype.element_ty), mask=inside)
            else:
                total += product
    if WANT_GATE and not PER_TOKEN:
        part = batch * tl.num_programs(0) + tl.program_id(0)
        partial = tl.sum(total, 0, keep_dims=True)
        tl.store(grad_gate_ptr + part * width + column, partial, mask=column < width)


def backward(grad: Tensor, y: Tensor, gate: Tensor, want_y: bool, want_gate: bool) -> tuple[Tensor, Tensor]:
    batch, tokens, width = grad.shape
    assert y.shape == grad.shape and gate.shape in ((batch, width), grad.shape)
    per_token = gate.ndim == 3
    rows, columns, warps = tile_of(width, grad.element_size())
    splits, per_split = token_splits(tokens, rows)
    acc = accumulation_torch(grad.dtype)
    grad_y = torch.empty(grad.shape if want_y else (0,), dtype=y.dtype, device=y.device)
    if not want_gate:
        partials = gate.new_empty(0)
    elif per_token:
        partials = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    else:
        partials = torch.empty(batch, splits, width, dtype=acc, device=gate.device)
    if grad.numel() and (want_y or want_gate):
        grad, y, gate_dense = dense_last(grad), dense_last(y), dense_last(gate)
        launch(
            _backward_kernel,
            (splits, ceil_div(width, columns), batch),
            grad, y, gate_dense, grad_y, partials, tokens, width, per_split,
            grad.stride(0), grad.stride(1), y.stride(0), y.stride(1),
            gate_dense.stride(0), gate_dense.stride(1),
            configs=(config(warps, ROWS=rows, COLUMNS=columns),),
            PER_TOKEN=per_token,
            WANT_Y=want_y,
            WANT_GATE=want_gate,
            ACC=accumulation(grad.dtype),
        )  # fmt: skip
    else:
        partials.zero_()
    if want_gate and not per_token:
        return grad_y, sum_partials(partials, gate.dtype)
    return grad_y, partials
