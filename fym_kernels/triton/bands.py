# mypy: disable-error-code="no-untyped-def"
"""Which keys a head sees, as index arithmetic: the geometry the attention kernels share.

A head's tokens are numbered in its own order: frames slowest (token = f P + p), and for a temporal head
locations slowest (n = p F' + f), so that what a tile of neighbours sees is a few dense ranges. Nothing is
permuted in memory: a kernel loads tile n from token_at(n).
"""

from __future__ import annotations

import triton
import triton.language as tl

# kinds: 0 full, 1 spatial, 2 temporal; 3 is the second part of a temporal head with a sink, the first frame


@triton.jit
def token_at(n, frames, locations, KIND: tl.constexpr):
    if KIND == 2:
        n = n % frames * locations + n // frames
    return n.to(tl.int64)


@triton.jit
def coordinates(n, frames, locations, width, KIND: tl.constexpr):
    """(frame, 0) for a spatial head, (row, column) for a temporal one."""
    if KIND == 1:
        first = n // locations
        second = n * 0
    elif KIND == 2:
        first = n // frames // width
        second = n // frames % width
    else:
        first = n * 0
        second = n * 0
    return first, second


@triton.jit
def seen_range(
    first, last, step, frames, locations, width, frame_window, location_window, KIND: tl.constexpr
):
    """The dense range [low, high) holding what tiles first..last see `step` rows below (temporal only)."""
    if KIND == 1:
        low = tl.maximum(first // locations - frame_window, 0) * locations
        high = tl.minimum(last // locations + frame_window + 1, frames) * locations
    elif KIND == 2:
        low = tl.maximum(first // frames + step * width - location_window, 0) * frames
        high = tl.minimum(last // frames + step * width + location_window + 1, locations) * frames
    else:
        low = first * 0
        high = first * 0 + (locations if KIND == 3 else frames * locations)
    return low, high


@triton.jit
def visible(u_own, v_own, u_other, v_other, step, frame_window, location_window, KIND: tl.constexpr):
    """Whether `other` is among what `own` sees: in window and, temporal, exactly `step` rows below.

    Ranges of neighbouring steps may overlap; asking for the exact step counts each token once.
    """
    if KIND == 1:
        away = u_other - u_own
        return (away <= frame_window) & (away >= -frame_window)
    away = v_other - v_own
    return (u_other - u_own == step) & (away <= location_window) & (away >= -location_window)


@triton.jit
def load_tile(ptr, token, token_stride, inside, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (d < DIM)[None, :]
    return tl.load(ptr + token[:, None] * token_stride + d[None, :], mask=mask, other=0)


@triton.jit
def store_tile(ptr, token, token_stride, inside, values, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (d < DIM)[None, :]
    values = values.to(ptr.dtype.element_ty)
    tl.store(ptr + token[:, None] * token_stride + d[None, :], values, mask=mask)
