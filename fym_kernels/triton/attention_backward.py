# mypy: disable-error-code="no-untyped-def"
"""The gradients of head_attention: a kernel over query tiles, and one over key tiles for key and value.

Windows are symmetric, so a key tile is seen by the same ranges of queries that it would see. The exception is
the first-frame sink, which every query sees: with a sink, first-frame keys leave the windowed tiles and get
tiles of their own, in token order, visited by all queries. Each gradient is written once: no atomics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.bands import (
    band_count,
    band_range,
    line_length,
    load_tile,
    store_tile,
    token_at,
    visible,
)
from fym_kernels.triton.common import (
    DOT_PRECISION,
    INTERPRETED,
    accumulation,
    ceil_div,
    config,
    dense_last,
    for_device,
    launch,
    power_of_two,
)

# Own rows x other rows of a tile, by the largest head dim and the oldest architecture they are for, chosen by
# what fits the registers (tests compile them all). A query tile keeps one gradient in registers, as forward
# does; a key tile keeps two, and so is half as tall.
QUERY_CONFIGS = {
    64: {
        80: (config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=32), config(4, 2, BLOCK_OWN=64, BLOCK_OTHER=32)),
        90: (config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=64), config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64)),
        100: (config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=64), config(4, 2, BLOCK_OWN=64, BLOCK_OTHER=64)),
    },
    128: {
        80: (config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64), config(4, 2, BLOCK_OWN=64, BLOCK_OTHER=32)),
        90: (config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=64), config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64)),
        100: (config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=32), config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64)),
    },
}
KEY_CONFIGS = {
    80: (config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=32),),
    90: (config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64), config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=32)),
}
# three tf32 terms take more registers
FLOAT32_QUERY_CONFIGS = (config(8, 1, BLOCK_OWN=32, BLOCK_OTHER=16),)
FLOAT32_KEY_CONFIGS = (config(4, 1, BLOCK_OWN=16, BLOCK_OTHER=16),)
INTERPRETER_CONFIGS = (config(1, 1, BLOCK_OWN=16, BLOCK_OTHER=16),)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _inner_kernel(
    grad_ptr, out_ptr, inner_ptr, tokens, grad_batch, grad_token, grad_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # <grad, out> of each query: what the softmax gradient subtracts
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    grad = load_tile(
        grad_ptr + batch * grad_batch + head * grad_head, token, grad_token, token < tokens, DIM, BLOCK_D
    )
    out = load_tile(
        out_ptr + batch * tokens * (HEADS * DIM) + head * DIM,
        token,
        HEADS * DIM,
        token < tokens,
        DIM,
        BLOCK_D,
    )
    inner = tl.sum(grad.to(ACC) * out.to(ACC), 1)
    tl.store(inner_ptr + (batch * HEADS + head) * tokens + token, inner, mask=token < tokens)


@triton.jit
def _query_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, kind_ptr, out_ptr, tokens, frames, locations, width,
    frame_window, location_window, sink, grad_batch, grad_token, grad_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    SCALE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # the walk of the forward kernel
    start = tl.program_id(0) * BLOCK_OWN
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    grad_ptr += batch * grad_batch + head * grad_head
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    out_ptr += batch * tokens * (HEADS * DIM) + head * DIM
    row = (batch * HEADS + head) * tokens
    kind = tl.load(kind_ptr + head).to(tl.int32)
    own_inner = tl.where(kind == 2, frames, 1)
    line = line_length(kind, locations, width)
    windows = band_count(kind, location_window)
    skip = tl.where(kind == 2, sink, 0)

    n = start + tl.arange(0, BLOCK_OWN)
    last = tl.minimum(start + BLOCK_OWN, tokens) - 1
    token = token_at(n, own_inner, locations)
    q = load_tile(q_ptr, token, q_token, n < tokens, DIM, BLOCK_D)
    grad = load_tile(grad_ptr, token, grad_token, n < tokens, DIM, BLOCK_D)
    lse = tl.load(lse_ptr + row + token, mask=n < tokens, other=0) * LOG2_E
    mean = tl.load(inner_ptr + row + token, mask=n < tokens, other=0)
    grad_q = tl.zeros([BLOCK_OWN, BLOCK_D], ACC)
    for band in range(windows + skip):
        in_sink = band == windows
        step = tl.where(kind == 2, band - location_window, 0)
        inner = tl.where(in_sink, 1, own_inner)
        low, high = band_range(
            kind,
            step,
            start,
            last,
            own_inner,
            tokens,
            frames,
            locations,
            width,
            frame_window,
            location_window,
        )
        low = tl.where(in_sink, 0, low)
        high = tl.where(in_sink, locations, high)
        windowed = (kind > 0) & (band < windows)
        for first in range(low, high, BLOCK_OTHER):
            j = first + tl.arange(0, BLOCK_OTHER)
            at = token_at(j, inner, locations)
            k = load_tile(k_ptr, at, k_token, j < high, DIM, BLOCK_D)
            v = load_tile(v_ptr, at, v_token, j < high, DIM, BLOCK_D)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2_E)
            p = tl.exp2(logits - lse[:, None])
            if windowed | (first + BLOCK_OTHER > high):
                seen = visible(kind, step, n, j, inner, line, frame_window, location_window)
                seen = (seen & (j % inner >= skip)[None, :]) | (windowed == 0)
                p = tl.where(seen & (j < high)[None, :], p, 0)
            grad_p = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
            grad_logits = (p * (grad_p - mean[:, None])).to(k.dtype)
            grad_q = tl.dot(grad_logits, k, grad_q, input_precision=PRECISION, out_dtype=ACC)
    store_tile(out_ptr, token, HEADS * DIM, n < tokens, grad_q * SCALE, DIM, BLOCK_D)


@triton.jit
def _key_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, kind_ptr, grad_k_ptr, grad_v_ptr,
    tokens, frames, locations, width, frame_window, location_window, sink, grad_batch, grad_token, grad_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    SCALE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    grad_ptr += batch * grad_batch + head * grad_head
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    grad_k_ptr += batch * tokens * (HEADS * DIM) + head * DIM
    grad_v_ptr += batch * tokens * (HEADS * DIM) + head * DIM
    row = (batch * HEADS + head) * tokens
    kind = tl.load(kind_ptr + head).to(tl.int32)
    tiles = tl.cdiv(tokens, BLOCK_OWN)
    in_sink = tile >= tiles  # the sink's own tiles: first-frame keys, which every query sees
    skip = tl.where(in_sink, 0, tl.where(kind == 2, sink, 0))
    # other heads have no sink: their extra tiles are empty
    end = tl.where(in_sink, tl.where(kind == 2, locations, 0), tokens)
    start = tl.where(in_sink, tile - tiles, tile) * BLOCK_OWN
    kind = tl.where(in_sink, 0, kind)
    inner = tl.where(kind == 2, frames, 1)
    line = line_length(kind, locations, width)

    n = start + tl.arange(0, BLOCK_OWN)
    last = tl.minimum(start + BLOCK_OWN, tokens) - 1
    token = token_at(n, inner, locations)
    mine = (n < end) & (n % inner >= skip)
    k = load_tile(k_ptr, token, k_token, mine, DIM, BLOCK_D)
    v = load_tile(v_ptr, token, v_token, mine, DIM, BLOCK_D)
    grad_k = tl.zeros([BLOCK_OWN, BLOCK_D], ACC)
    grad_v = tl.zeros([BLOCK_OWN, BLOCK_D], ACC)
    for band in range(tl.where(start < end, band_count(kind, location_window), 0)):
        step = tl.where(kind == 2, band - location_window, 0)
        low, high = band_range(
            kind, step, start, last, inner, tokens, frames, locations, width, frame_window, location_window
        )
        for first in range(low, high, BLOCK_OTHER):
            i = first + tl.arange(0, BLOCK_OTHER)
            at = token_at(i, inner, locations)
            q = load_tile(q_ptr, at, q_token, i < high, DIM, BLOCK_D)
            grad = load_tile(grad_ptr, at, grad_token, i < high, DIM, BLOCK_D)
            lse = tl.load(lse_ptr + row + at, mask=i < high, other=0) * LOG2_E
            mean = tl.load(inner_ptr + row + at, mask=i < high, other=0)
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2_E)
            p = tl.exp2(logits - lse[None, :])
            if (kind > 0) | (first + BLOCK_OTHER > high):
                seen = visible(kind, step, n, i, inner, line, frame_window, location_window) | (kind == 0)
                p = tl.where(seen & (i < high)[None, :], p, 0)
            grad_v = tl.dot(p.to(grad.dtype), grad, grad_v, input_precision=PRECISION, out_dtype=ACC)
            grad_p = tl.dot(v, tl.trans(grad), input_precision=PRECISION, out_dtype=ACC)
            grad_logits = (p * (grad_p - mean[None, :])).to(q.dtype)
            grad_k = tl.dot(grad_logits, q, grad_k, input_precision=PRECISION, out_dtype=ACC)
    store_tile(grad_k_ptr, token, HEADS * DIM, mine, grad_k * SCALE, DIM, BLOCK_D)
    store_tile(grad_v_ptr, token, HEADS * DIM, mine, grad_v, DIM, BLOCK_D)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    head_kind: Tensor,
    grid: Sequence[int],
    frame_window: int,
    location_window: int,
    first_frame_sink: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_query, grad_key, grad_value), each (B,S,H,D) contiguous in the dtype of query."""
    batch, tokens, heads, dim = query.shape
    assert grad.shape == out.shape == key.shape == value.shape == query.shape
    assert out.is_contiguous() and logsumexp.is_contiguous() and logsumexp.shape == (batch, heads, tokens)
    grads = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3)]
    if query.numel() == 0:
        return grads[0], grads[1], grads[2]
    grad, query, key, value = (dense_last(x) for x in (grad, query, key, value))
    inner = torch.empty_like(logsumexp)
    block_d = max(16, power_of_two(dim))
    rows = 16 if INTERPRETED else 4096 // block_d
    launch(
        _inner_kernel,
        (ceil_div(tokens, rows), heads, batch),
        grad, out, inner, tokens, *grad.stride()[:3],
        configs=(config(4, ROWS=rows),),
        HEADS=heads,
        DIM=dim,
        BLOCK_D=block_d,
        ACC=accumulation(query.dtype),
    )  # fmt: skip
    locations = grid[1] * grid[2]
    inputs = (grad, query, key, value, logsumexp, inner, head_kind.to(query.device))
    sizes = (tokens, grid[0], locations, grid[2], frame_window, location_window, int(first_frame_sink))
    strides = (*grad.stride()[:3], *query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    options = {
        "key": ("HEADS", "DIM"),
        "SCALE": scale,
        "HEADS": heads,
        "DIM": dim,
        "BLOCK_D": block_d,
        "PRECISION": DOT_PRECISION,
        "ACC": accumulation(query.dtype),
    }

    if INTERPRETED:
        query_configs = key_configs = INTERPRETER_CONFIGS
    elif query.element_size() > 2:
        query_configs, key_configs = FLOAT32_QUERY_CONFIGS, FLOAT32_KEY_CONFIGS
    else:
        query_configs = for_device(QUERY_CONFIGS[64 if dim <= 64 else 128], query)
        key_configs = for_device(KEY_CONFIGS, query)

    def key_tiles(meta: dict[str, int]) -> tuple[int, int, int]:
        sink = ceil_div(locations, meta["BLOCK_OWN"]) if first_frame_sink else 0
        return ceil_div(tokens, meta["BLOCK_OWN"]) + sink, heads, batch

    launch(
        _query_kernel,
        lambda meta: (ceil_div(tokens, meta["BLOCK_OWN"]), heads, batch),
        *inputs, grads[0], *sizes, *strides, configs=query_configs, **options,
    )  # fmt: skip
    launch(
        _key_kernel,
        key_tiles,
        *inputs, grads[1], grads[2], *sizes, *strides, configs=key_configs, **options,
    )  # fmt: skip
    return grads[0], grads[1], grads[2]
