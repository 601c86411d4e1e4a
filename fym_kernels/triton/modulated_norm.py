# mypy: disable-error-code="no-untyped-def"
"""modulated_norm on Triton: LayerNorm(x) * (1 + scale) + shift.

forward(x, scale, shift, eps) -> out, mean, rstd              saves x, scale, mean, rstd
backward(grad, x, scale, mean, rstd, shift_per_token, want_x, want_scale, want_shift)
    -> grad_x, grad_scale, grad_shift, (0,) where not wanted; grad_shift in the accumulation dtype

x, grad (B,S,d) of one dtype, any strides (copied only if the last dimension is not dense); scale, shift (B,d)
or (B,S,d); mean, rstd (B,S) in the accumulation dtype. A whole row lives in registers, so x is read once and
out written once. The gradients of scale and shift, which LoRA tuning does not need, are a second pass over x
and grad with fixed-order partial sums.
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
    chunks_of,
    config,
    dense_last,
    launch,
    sum_partials,
    tile_of,
    token_splits,
    warps_for,
)


@triton.jit
def _forward_kernel(
    x_ptr, scale_ptr, shift_ptr, out_ptr, mean_ptr, rstd_ptr, tokens,
    x_batch, x_token, scale_batch, scale_token, shift_batch, shift_token,
    EPS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tokens + token
    lane = tl.arange(0, CHUNK)
    x_ptr += batch * x_batch + token * x_token
    scale_ptr += batch * scale_batch + token * scale_token
    shift_ptr += batch * shift_batch + token * shift_token
    chunks = ()
    total = tl.zeros([CHUNK], ACC)
    for c in tl.static_range(CHUNKS):
        x = tl.load(x_ptr + c * CHUNK + lane, mask=c * CHUNK + lane < WIDTH, other=0).to(ACC)
        chunks = chunks + (x,)  # noqa: RUF005  triton has no star expressions
        total += x
    mean = tl.sum(total, 0) / WIDTH
    total = tl.zeros([CHUNK], ACC)
    for c in tl.static_range(CHUNKS):
        off = tl.where(c * CHUNK + lane < WIDTH, chunks[c] - mean, 0)
        total += off * off
    rstd = 1 / tl.sqrt(tl.sum(total, 0) / WIDTH + EPS)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + lane
        scale = tl.load(scale_ptr + column, mask=column < WIDTH, other=0).to(ACC)
        shift = tl.load(shift_ptr + column, mask=column < WIDTH, other=0).to(ACC)
        out = (chunks[c] - mean) * rstd * (1 + scale) + shift
        tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=column < WIDTH)


def _token_stride(modulation: Tensor) -> int:
    return modulation.stride(1) if modulation.ndim == 3 else 0


def forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    for modulation in (scale, shift):
        assert modulation.shape in ((batch, width), x.shape)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    acc = accumulation_torch(x.dtype)
    mean, rstd = (torch.empty(batch, tokens, dtype=acc, device=x.device) for _ in range(2))
    if out.numel() == 0:
        return out, mean.zero_(), rstd.zero_()
    x, scale, shift = dense_last(x), dense_last(scale), dense_last(shift)
    chunks, chunk = chunks_of(width)
    launch(
        _forward_kernel,
        (tokens, batch),
        x, scale, shift, out, mean, rstd, tokens,
        x.stride(0), x.stride(1), scale.stride(0), _token_stride(scale),
        shift.stride(0), _token_stride(shift),
        configs=(config(warps_for(chunk, x.element_size())),),
        EPS=eps,
        WIDTH=width,
        CHUNKS=chunks,
        CHUNK=chunk,
        ACC=accumulation(x.dtype),
    )  # fmt: skip
    return out, mean, rstd


@triton.jit
def _backward_x_kernel(
    grad_ptr, x_ptr, scale_ptr, mean_ptr, rstd_ptr, grad_x_ptr, tokens,
    grad_batch, grad_token, x_batch, x_token, scale_batch, scale_token,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # With n = (x - mean) rstd and g = grad (1 + scale): grad_x = rstd (g - mean(g) - n mean(g n))
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tokens + token
    lane = tl.arange(0, CHUNK)
    grad_ptr += batch * grad_batch + token * grad_token
    x_ptr += batch * x_batch + token * x_token
    scale_ptr += batch * scale_batch + token * scale_token
    mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)
    normed = ()
    grads = ()
    sum_g = tl.zeros([CHUNK], ACC)
    sum_gn = tl.zeros([CHUNK], ACC)
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + lane
        inside = column < WIDTH
        x = tl.load(x_ptr + column, mask=inside, other=0).to(ACC)
        scale = tl.load(scale_ptr + column, mask=inside, other=0).to(ACC)
        g = tl.load(grad_ptr + column, mask=inside, other=0).to(ACC) * (1 + scale)
        n = (x - mean) * rstd
        normed = normed + (n,)  # noqa: RUF005
        grads = grads + (g,)  # noqa: RUF005
        sum_g += g
        sum_gn += g * n
    mean_g = tl.sum(sum_g, 0) / WIDTH
    mean_gn = tl.sum(sum_gn, 0) / WIDTH
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + lane
        grad_x = rstd * (grads[c] - mean_g - normed[c] * mean_gn)
        grad_x = grad_x.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + row * WIDTH + column, grad_x, mask=column < WIDTH)


@triton.jit
def _backward_modulation_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, out_ptr, tokens, width, tokens_per_split,
    grad_batch, grad_token, x_batch, x_token,
    PER_TOKEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # PER_TOKEN: grad_scale itself; else partial sums (B, splits, 2, width) of grad_scale and grad_shift
    batch = tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    first = tl.program_id(0).to(tl.int64) * tokens_per_split
    sum_scale = tl.zeros([ROWS, COLUMNS], ACC)
    sum_shift = tl.zeros([ROWS, COLUMNS], ACC)
    for start in range(0, tokens_per_split, ROWS):
        row = first + start + tl.arange(0, ROWS)[:, None]
        inside = (row < tokens) & (column < width)
        grad = tl.load(grad_ptr + batch * grad_batch + row * grad_token + column, mask=inside, other=0)
        x = tl.load(x_ptr + batch * x_batch + row * x_token + column, mask=inside, other=0).to(ACC)
        mean = tl.load(mean_ptr + batch * tokens + row, mask=row < tokens, other=0)
        rstd = tl.load(rstd_ptr + batch * tokens + row, mask=row < tokens, other=0)
        grad_scale = grad.to(ACC) * (x - mean) * rstd
        if PER_TOKEN:
            offset = (batch * tokens + row) * width + column
            tl.store(out_ptr + offset, grad_scale.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            sum_scale += grad_scale
            sum_shift += grad.to(ACC)
    if not PER_TOKEN:
        out_ptr += (batch * tl.num_programs(0) + tl.program_id(0)) * 2 * width
        tl.store(out_ptr + column, tl.sum(sum_scale, 0, keep_dims=True), mask=column < width)
        tl.store(out_ptr + width + column, tl.sum(sum_shift, 0, keep_dims=True), mask=column < width)


def _backward_modulation(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *, per_token: bool, dtype: torch.dtype
) -> Tensor:
    """grad_scale (B,S,d) of `dtype` when per_token, else the sums (B,2,d) for scale and shift."""
    batch, tokens, width = x.shape
    rows, columns, warps = tile_of(width, x.element_size())
    splits, per_split = token_splits(tokens, rows)
    shape = x.shape if per_token else (batch, splits, 2 * width)
    out = torch.empty(shape, dtype=dtype if per_token else accumulation_torch(x.dtype), device=x.device)
    if x.numel() == 0:
        out.zero_()
    else:
        launch(
            _backward_modulation_kernel,
            (splits, ceil_div(width, columns), batch),
            grad, x, mean, rstd, out, tokens, width, per_split,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
            configs=(config(warps, ROWS=rows, COLUMNS=columns),),
            PER_TOKEN=per_token,
            ACC=accumulation(x.dtype),
        )  # fmt: skip
    return out if per_token else sum_partials(out, out.dtype).view(batch, 2, width)


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
    shift_per_token: bool,
    want_x: bool,
    want_scale: bool,
    want_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = x.shape
    assert grad.shape == x.shape and mean.shape == rstd.shape == (batch, tokens)
    assert mean.is_contiguous() and rstd.is_contiguous()
    scale_per_token = scale.ndim == 3
    grad, x, scale = dense_last(grad), dense_last(x), dense_last(scale)
    grad_x, grad_scale, grad_shift = x.new_empty(0), scale.new_empty(0), mean.new_empty(0)
    if want_x:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x.numel():
            chunks, chunk = chunks_of(width)
            launch(
                _backward_x_kernel,
                (tokens, batch),
                grad, x, scale, mean, rstd, grad_x, tokens,
                grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
                scale.stride(0), _token_stride(scale),
                configs=(config(warps_for(chunk, x.element_size())),),
                WIDTH=width,
                CHUNKS=chunks,
                CHUNK=chunk,
                ACC=accumulation(x.dtype),
            )  # fmt: skip
    if want_scale and scale_per_token:
        grad_scale = _backward_modulation(grad, x, mean, rstd, per_token=True, dtype=scale.dtype)
    if want_shift and shift_per_token:
        grad_shift = grad.to(mean.dtype, copy=True)
    if (want_scale and not scale_per_token) or (want_shift and not shift_per_token):
        sums = _backward_modulation(grad, x, mean, rstd, per_token=False, dtype=scale.dtype)
        if want_scale and not scale_per_token:
            grad_scale = sums[:, 0].to(scale.dtype, copy=True)
        if want_shift and not shift_per_token:
            grad_shift = sums[:, 1].clone()
    return grad_x, grad_scale, grad_shift
