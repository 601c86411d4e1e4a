# mypy: disable-error-code="no-untyped-def"
"""Rotary embedding inside a kernel: tables per axis, a token's cosines and sines, channels in pairs.

Angles are separable: a token's pair turns by the angle of its frame, its row or its column. So the tables
hold one entry per position and pair of each axis, a few KB that stay in the cache, where one per token would
be read again for every token. Angles are float64 up to their cosine and sine.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import ceil_div, config, launch


@triton.jit
def _table_kernel(
    time_ptr, row_ptr, column_ptr, frequency_ptr, table_ptr, time_entries, row_entries, entries,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # entry e of the time axis: position e // T, pair e % T; then the same for rows and columns
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for_time = entry < time_entries
    for_row = (entry >= time_entries) & (entry < time_entries + row_entries)
    for_column = (entry >= time_entries + row_entries) & (entry < entries)
    e_row = entry - time_entries
    e_column = e_row - row_entries
    # at most one of each three is not masked; an axis without channels has no entries
    position = tl.load(time_ptr + entry // max(T, 1), mask=for_time, other=0).to(tl.float64)
    position += tl.load(row_ptr + e_row // max(R, 1), mask=for_row, other=0).to(tl.float64)
    position += tl.load(column_ptr + e_column // max(C, 1), mask=for_column, other=0).to(tl.float64)
    pair = tl.where(for_time, entry % max(T, 1), T + e_row % max(R, 1))
    pair = tl.where(for_column, T + R + e_column % max(C, 1), pair)
    angle = position * tl.load(frequency_ptr + pair, mask=entry < entries, other=0)
    tl.store(table_ptr + entry, tl.cos(angle).to(table_ptr.dtype.element_ty), mask=entry < entries)
    tl.store(table_ptr + entries + entry, tl.sin(angle).to(table_ptr.dtype.element_ty), mask=entry < entries)


@lru_cache(maxsize=32)
def _frequencies(axes_dim: tuple[int, int, int], theta: float, device: torch.device) -> Tensor:
    axes = [1.0 / theta ** (torch.arange(0, n, 2, dtype=torch.float64) / n) for n in axes_dim]
    return torch.cat(axes).to(device)


def rotary_table(
    positions: tuple[Tensor, Tensor, Tensor], axes_dim: tuple[int, int, int], theta: float, dtype: torch.dtype
) -> Tensor:
    """(2, entries) cosines and sines: angles in float64, then rounded to `dtype`."""
    pairs = [n // 2 for n in axes_dim]
    sizes = [p.numel() * n for p, n in zip(positions, pairs, strict=True)]
    device = positions[0].device
    table = torch.empty(2, sum(sizes), dtype=dtype, device=device)
    if table.numel():
        frequencies = _frequencies(tuple(axes_dim), float(theta), device)
        launch(
            _table_kernel,
            (ceil_div(sum(sizes), 256),),
            *(p.contiguous() for p in positions), frequencies, table, sizes[0], sizes[1], sum(sizes),
            configs=(config(4, BLOCK=256),),
            T=pairs[0],
            R=pairs[1],
            C=pairs[2],
        )  # fmt: skip
    return table


@triton.jit
def cos_sin(
    table_ptr, entries, token, batch, frames, rows, columns, rotate_from, time_batch,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    pair = tl.arange(0, PAIRS)
    place = token - rotate_from
    inside = (place >= 0) & (place < frames * rows * columns) & (pair < T + R + C)
    plane = tl.maximum(rows * columns, 1)
    frame = place // plane
    row = place % plane // tl.maximum(columns, 1)
    column = place % tl.maximum(columns, 1)
    row_start = entries - rows * R - columns * C
    entry = batch * time_batch + frame * T + pair
    entry = tl.where(pair >= T, row_start + row * R + pair - T, entry)
    entry = tl.where(pair >= T + R, row_start + rows * R + column * C + pair - T - R, entry)
    cos = tl.load(table_ptr + entry, mask=inside, other=1)  # text tokens turn by nothing
    sin = tl.load(table_ptr + entries + entry, mask=inside, other=0)
    return cos[None, :], sin[None, :]


@triton.jit
def load_pairs(
    ptr, first_head, head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, GROUP)[:, None]
    ptr += head.to(tl.int64) * head_stride
    if INTERLEAVED:
        channel = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.load(ptr + channel, mask=(head < HEADS) & (channel < DIM), other=0).to(ACC)
        a, b = tl.split(tl.reshape(x, [GROUP, PAIRS, 2]))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        inside = (head < HEADS) & (pair < DIM // 2)
        a = tl.load(ptr + pair, mask=inside, other=0).to(ACC)
        b = tl.load(ptr + DIM // 2 + pair, mask=inside, other=0).to(ACC)
    return a, b


@triton.jit
def store_pairs(
    ptr, a, b, first_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, GROUP)[:, None]
    ptr += head * DIM
    if INTERLEAVED:
        channel = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.reshape(tl.join(a, b), [GROUP, 2 * PAIRS])
        tl.store(ptr + channel, x.to(ptr.dtype.element_ty), mask=(head < HEADS) & (channel < DIM))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        inside = (head < HEADS) & (pair < DIM // 2)
        tl.store(ptr + pair, a.to(ptr.dtype.element_ty), mask=inside)
        tl.store(ptr + DIM // 2 + pair, b.to(ptr.dtype.element_ty), mask=inside)
