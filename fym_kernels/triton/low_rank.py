# mypy: disable-error-code="no-untyped-def"
"""The three products of a low-rank update on Triton; the base GEMM stays with the vendor's BLAS.

shrink   s = scale x F          (tokens, width) x (width, r): wide in, narrow out
expand   y += scale s F         (tokens, r) x (r, width), added into a tensor that is already there
reduce   G = scale x^T s        (width, tokens) x (tokens, r): fixed-order partial sums over the tokens

x and y (B,S,d) may be strided, with a dense last dimension. `Columns` restricts d to those of some heads:
they are read and written in place, factors and G are compact. s is (B*S, r) in the accumulation dtype.
Factors may be float32 beside bfloat16 activations. They are then split in three bfloat16 terms, which keeps
their 24 bits at tensor-core speed; only an update that is rounded to bfloat16 itself is computed in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import (
    DOT_PRECISION,
    INTERPRETED,
    accumulation,
    accumulation_torch,
    ceil_div,
    config,
    for_device,
    launch,
    power_of_two,
    sum_partials,
)

# Tiles are 64 columns and 64 ranks: the three terms of a factor live in registers, of 8 warps on sm_80. 64
# tokens fill the device when there are few, 128 halve the reads of the factor.
TILE = 64
SHRINK_CONFIGS = (config(8, 3, BLOCK_M=64), config(8, 2, BLOCK_M=128))
REDUCE_CONFIGS = (config(4, 3, BLOCK_M=64), config(4, 2, BLOCK_M=32))
EXPAND_CONFIGS = (config(4, 2, BLOCK_M=64),)  # in place, so never more than one to time
# For other dtypes: beside float32 factors they take three tf32 terms, and with them more registers. Told what
# it may use, the assembler does not spill for one more block.
WIDE_SM80 = (config(8, 2, most_registers=255, BLOCK_M=32),)
WIDE_SHRINK = (config(8, 2, most_registers=255, BLOCK_M=64), config(8, 2, most_registers=255, BLOCK_M=128))
WIDE_REDUCE = (config(4, 3, most_registers=255, BLOCK_M=64), config(4, 2, most_registers=255, BLOCK_M=32))
WIDE_EXPAND = (config(8, 2, most_registers=255, BLOCK_M=64),)
INTERPRETER_CONFIGS = (config(1, 1, BLOCK_M=16),)
PROGRAMS = 512  # that `reduce` aims at: a few per multiprocessor of the largest devices


def _configs(
    like: Tensor, configs: tuple[triton.Config, ...], wide: tuple[triton.Config, ...]
) -> tuple[triton.Config, ...]:
    """`configs` for bfloat16, for other dtypes `wide`, or on sm_80 its own."""
    if INTERPRETED:
        return INTERPRETER_CONFIGS
    return configs if like.dtype == torch.bfloat16 else for_device({80: WIDE_SM80, 90: wide}, like)


class Columns(NamedTuple):
    """Which columns of a (B,S,d) tensor take part, as groups of equal width."""

    heads: Tensor | None  # group g is part g % parts of head heads[g // parts]; None: group g is g
    parts: int
    groups: int
    width: int
    total: int  # columns that take part


def columns_of(width: int, active_heads: Tensor | None, head_dim: int | None, like: Tensor) -> Columns:
    """All `width` columns, or those of the active heads, in tiles of at most 64."""
    if active_heads is None:
        tile = min(TILE, max(16, power_of_two(width)))
        return Columns(None, 1, ceil_div(width, tile), tile, width)
    assert head_dim is not None and width % head_dim == 0
    heads = active_heads.to(like.device)
    parts = ceil_div(head_dim, TILE)
    while head_dim % parts:
        parts += 1
    return Columns(heads, parts, heads.numel() * parts, head_dim // parts, heads.numel() * head_dim)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if a.dtype == b.dtype:
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    elif a.dtype == tl.bfloat16:
        high = b.to(tl.bfloat16)
        rest = b - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(a, low, acc)
        acc = tl.dot(a, middle, acc)
        acc = tl.dot(a, high, acc)
    else:
        wide = acc.dtype
        acc = tl.dot(a.to(wide), b.to(wide), acc, input_precision=PRECISION, out_dtype=wide)
    return acc


@triton.jit
def _shrink_kernel(
    x_ptr, f_ptr, s_ptr, heads_ptr, rows, tokens, x_batch, x_token, groups, width, total, rank,
    f_column, f_rank, s_row, scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # ranks are the fast axis of the grid: the tiles of one token block share its reads of x in the cache
    row = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    x_ptr += ((row // tokens) * x_batch + (row % tokens) * x_token)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_R], ACC)
    for g in range(groups):
        inside = (k < width) & (g * width + k < total)
        group = tl.load(heads_ptr + g // PARTS) * PARTS + g % PARTS if PARTS else g
        column = group * width + k
        x = tl.load(x_ptr + column[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0)
        f = f_ptr + (g * width + k)[:, None] * f_column + r[None, :] * f_rank
        acc = _dot(x, tl.load(f, mask=inside[:, None] & (r < rank)[None, :], other=0), acc, PRECISION)
    s_ptr += row[:, None] * s_row + r[None, :]
    tl.store(s_ptr, acc * scale, mask=(row < rows)[:, None] & (r < rank)[None, :])


def shrink(x: Tensor, columns: Columns, factor_rank_last: Tensor, s: Tensor, scale: float) -> None:
    """s (B*S, r) = scale x[..., columns] F; F (columns.total, r) in any strides."""
    batch, tokens, _ = x.shape
    rank = s.shape[1]
    assert factor_rank_last.shape == (columns.total, rank) and x.stride(-1) == 1 and s.stride(-1) == 1
    block_r = min(TILE, max(16, power_of_two(rank)))
    launch(
        _shrink_kernel,
        lambda meta: (ceil_div(rank, block_r), ceil_div(batch * tokens, meta["BLOCK_M"])),
        x, factor_rank_last, s, x if columns.heads is None else columns.heads, batch * tokens, tokens,
        x.stride(0), x.stride(1), columns.groups, columns.width, columns.total, rank,
        factor_rank_last.stride(0), factor_rank_last.stride(1), s.stride(0), float(scale),
        configs=_configs(x, SHRINK_CONFIGS, WIDE_SHRINK),
        key=("total", "rank"),
        PARTS=0 if columns.heads is None else columns.parts,
        BLOCK_K=max(16, power_of_two(columns.width)),
        BLOCK_R=block_r,
        PRECISION=DOT_PRECISION,
        ACC=accumulation(x.dtype),
    )  # fmt: skip


@triton.jit
def _expand_kernel(
    y_ptr, s_ptr, f_ptr, heads_ptr, rows, tokens, y_batch, y_token, width, total, rank,
    f_rank, f_column, s_row, scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    g = tl.program_id(0)
    inside = (row < rows)[:, None] & ((n < width) & (g * width + n < total))[None, :]
    group = tl.load(heads_ptr + g // PARTS) * PARTS + g % PARTS if PARTS else g
    column = group * width + n
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, rank, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        s_mask = (row < rows)[:, None] & (r < rank)[None, :]
        s = tl.load(s_ptr + row[:, None] * s_row + r[None, :], mask=s_mask, other=0)
        f = f_ptr + r[:, None] * f_rank + (g * width + n)[None, :] * f_column
        f_mask = (r < rank)[:, None] & ((n < width) & (g * width + n < total))[None, :]
        acc = _dot(s.to(DOT), tl.load(f, mask=f_mask, other=0).to(DOT), acc, PRECISION)
    y_ptr += ((row // tokens) * y_batch + (row % tokens) * y_token)[:, None] + column[None, :]
    y = tl.load(y_ptr, mask=inside, other=0).to(ACC) + acc * scale
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=inside)


def expand(y: Tensor, columns: Columns, s: Tensor, factor_rank_first: Tensor, scale: float) -> None:
    """y[..., columns] += scale s F; F (r, columns.total) in any strides. In place, so never autotuned."""
    batch, tokens, _ = y.shape
    rank = s.shape[1]
    assert factor_rank_first.shape == (rank, columns.total) and y.stride(-1) == 1 and s.stride(-1) == 1
    dot = tl.bfloat16 if y.dtype == torch.bfloat16 else accumulation(y.dtype)
    launch(
        _expand_kernel,
        lambda meta: (columns.groups, ceil_div(batch * tokens, meta["BLOCK_M"])),
        y, s, factor_rank_first, y if columns.heads is None else columns.heads, batch * tokens, tokens,
        y.stride(0), y.stride(1), columns.width, columns.total, rank,
        factor_rank_first.stride(0), factor_rank_first.stride(1), s.stride(0), float(scale),
        configs=_configs(y, EXPAND_CONFIGS, WIDE_EXPAND),
        PARTS=0 if columns.heads is None else columns.parts,
        BLOCK_N=max(16, power_of_two(columns.width)),
        BLOCK_R=min(TILE, max(16, power_of_two(rank))),
        PRECISION=DOT_PRECISION,
        ACC=accumulation(y.dtype),
        DOT=dot,
    )  # fmt: skip


@triton.jit
def _reduce_kernel(
    x_ptr, s_ptr, out_ptr, heads_ptr, rows, rows_per_split, tokens, x_batch, x_token, width, total, rank,
    s_row, out_split, out_column, out_rank, scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, BLOCK_N)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    g = tl.program_id(0)
    split = tl.program_id(2).to(tl.int64)
    inside = (n < width) & (g * width + n < total)
    group = tl.load(heads_ptr + g // PARTS) * PARTS + g % PARTS if PARTS else g
    column = group * width + n
    acc = tl.zeros([BLOCK_N, BLOCK_R], ACC)
    for start in range(0, rows_per_split, BLOCK_M):
        row = split * rows_per_split + start + tl.arange(0, BLOCK_M)
        x_at = ((row // tokens) * x_batch + (row % tokens) * x_token)[:, None] + column[None, :]
        x = tl.load(x_ptr + x_at, mask=(row < rows)[:, None] & inside[None, :], other=0)
        s_mask = (row < rows)[:, None] & (r < rank)[None, :]
        s = tl.load(s_ptr + row[:, None] * s_row + r[None, :], mask=s_mask, other=0)
        acc = _dot(tl.trans(x), s, acc, PRECISION)
    out_ptr += split * out_split + (g * width + n)[:, None] * out_column + r[None, :] * out_rank
    tl.store(out_ptr, acc * scale, mask=inside[:, None] & (r < rank)[None, :])


def reduce(
    x: Tensor, columns: Columns, s: Tensor, scale: float, dtype: torch.dtype, *, rank_first: bool
) -> Tensor:
    """scale x[..., columns]^T s of `dtype`: (columns.total, r), or (r, columns.total) when rank_first."""
    batch, tokens, _ = x.shape
    rank, rows = s.shape[1], batch * tokens
    assert x.stride(-1) == 1 and s.stride(-1) == 1
    block_r = min(TILE, max(16, power_of_two(rank)))
    tiles = columns.groups * ceil_div(rank, block_r)
    # whole tiles of every configuration, so that no split reads its neighbour's tokens
    per_split = 64 * max(1, ceil_div(rows, 64 * max(1, min(64, PROGRAMS // tiles))))
    splits = ceil_div(rows, per_split)
    acc = accumulation_torch(x.dtype)
    partials = torch.empty(1, splits, columns.total * rank, dtype=acc, device=x.device)
    launch(
        _reduce_kernel,
        (columns.groups, ceil_div(rank, block_r), splits),
        x, s, partials, x if columns.heads is None else columns.heads, rows, per_split, tokens,
        x.stride(0), x.stride(1), columns.width, columns.total, rank,
        s.stride(0), partials.stride(1), *((1, columns.total) if rank_first else (rank, 1)), float(scale),
        configs=_configs(x, REDUCE_CONFIGS, WIDE_REDUCE),
        key=("total", "rank"),
        PARTS=0 if columns.heads is None else columns.parts,
        BLOCK_N=max(16, power_of_two(columns.width)),
        BLOCK_R=block_r,
        PRECISION=DOT_PRECISION,
        ACC=accumulation(x.dtype),
    )  # fmt: skip
    return sum_partials(partials, dtype).view((rank, columns.total) if rank_first else (columns.total, rank))
