# mypy: disable-error-code="no-untyped-def"
"""Which tokens a head sees, as index arithmetic: the geometry the attention kernels share.

A head's tokens are numbered in its own order: frames slowest (n = f P + p), and for a temporal head locations
slowest (n = p F' + f), so that what a tile of neighbours sees is a few dense ranges, called bands. Nothing is
permuted in memory: a kernel loads tile n from token_at(n). Bands differ in numbers, not in code, so all kinds
share one loop, and with it the shared memory and registers of one.

kind: 0 full, 1 spatial, 2 temporal. `inner` is the fast axis of an order: F' for locations slowest, else 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

EVERYWHERE = tl.constexpr(1 << 30)


@triton.jit
def token_at(n, inner, locations):
    return (n % inner * locations + n // inner).to(tl.int64)


@triton.jit
def band_count(kind, location_window):
    """Bands of rows a temporal head sees; one band for the others."""
    return tl.where(kind == 2, 2 * location_window + 1, 1)


@triton.jit
def band_range(
    kind, step, first, last, inner, tokens, frames, locations, width, frame_window, location_window
):
    """[low, high), in the head's order, of what tile first..last sees `step` rows below (temporal only)."""
    low_frame = tl.maximum(first // locations - frame_window, 0)
    high_frame = tl.minimum(last // locations + frame_window + 1, frames)
    low_place = tl.maximum(first // inner + step * width - location_window, 0)
    high_place = tl.minimum(last // inner + step * width + location_window + 1, locations)
    low = tl.where(kind == 1, low_frame * locations, tl.where(kind == 2, low_place * frames, 0))
    high = tl.where(kind == 1, high_frame * locations, tl.where(kind == 2, high_place * frames, tokens))
    return low, high


@triton.jit
def line_length(kind, locations, width):
    """Places per line: a line is a frame for a spatial head, a row of the frame for a temporal one."""
    return tl.where(kind == 2, width, locations)


@triton.jit
def visible(kind, step, own, other, inner, line, frame_window, location_window):
    """(own, other) -> whether they see each other: lines in window, and columns for a temporal head.

    Ranges of neighbouring steps may overlap. Asking for the exact step counts each pair once.
    """
    own_place = own // inner
    other_place = other // inner
    lines_away = (other_place // line)[None, :] - (own_place // line)[:, None]
    columns_away = (other_place % line)[None, :] - (own_place % line)[:, None]
    nearest = tl.where(kind == 2, step, -frame_window)
    farthest = tl.where(kind == 2, step, frame_window)
    reach = tl.where(kind == 2, location_window, EVERYWHERE)
    in_line = (lines_away >= nearest) & (lines_away <= farthest)
    return in_line & (columns_away <= reach) & (columns_away >= -reach)


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
