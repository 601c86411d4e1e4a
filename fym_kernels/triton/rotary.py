# mypy: disable-error-code="no-untyped-def"
"""Rotary embedding inside a kernel: a token's cosines and sines, and channels in pairs.

Angles are separable: a token's pair turns by the angle of its frame, its row or its column. So the table
holds one entry per position and pair of each axis, a few KB that stay in the cache, where one per token would
be read again for every token. Row 0 holds cosines, row 1 sines. Entries: time positions (of all samples, if
they differ) x T pairs, then rows x R, then columns x C, position-major.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
