# mypy: disable-error-code="no-untyped-def"
"""The gradients of head_attention: a kernel over query tiles, and one over key tiles for key and value.

Windows are symmetric, so a key tile is seen by the same ranges of queries that it would see. The exception is
the first-frame sink, which every query sees: with a sink, first-frame keys leave the windowed tiles and get
tiles of their own, in token order, visited by all queries. Each gradient is written once: no atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.bands import coordinates, load_tile, seen_range, store_tile, token_at, visible
from fym_kernels.triton.common import (
    DOT_PRECISION,
    INTERPRETED,
    accumulation,
    ceil_div,
    config,
    dense_last,
    launch,
    power_of_two,
)

# Two tiles of gradients and two of inputs stay in registers, so rows are split over 8 warps at head dim 128;
# smaller tiles raise occupancy for head dim 64 and narrow bands.
CONFIGS = (
    config(8, 2, BLOCK_OWN=128, BLOCK_OTHER=64),
    config(8, 2, BLOCK_OWN=64, BLOCK_OTHER=64),
    config(4, 2, BLOCK_OWN=64, BLOCK_OTHER=32),
)
FLOAT32_CONFIGS = (config(8, 1, BLOCK_OWN=64, BLOCK_OTHER=32),)
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
def _seen(
    u_own, v_own, other, step, frames, locations, width, frame_window, location_window, inside,
    KIND: tl.constexpr,
):  # fmt: skip
    """Mask (own, other) of the pairs that see each other."""
    seen = inside[None, :]
    if KIND == 1 or KIND == 2:
        u_other, v_other = coordinates(other, frames, locations, width, KIND)
        seen = seen & visible(
            u_own[:, None], v_own[:, None], u_other[None, :], v_other[None, :],
            step, frame_window, location_window, KIND,
        )  # fmt: skip
    return seen


@triton.jit
def _query_part(
    grad_q, q, grad, lse, inner, k_ptr, v_ptr, k_token, v_token, n, first, last, frames, locations, width,
    frame_window, location_window,
    SCALE: tl.constexpr, KIND: tl.constexpr, HAS_SINK: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    u, v = coordinates(n, frames, locations, width, KIND)
    reach = location_window if KIND == 2 else 0
    for step in range(-reach, reach + 1):
        low, high = seen_range(
            first, last, step, frames, locations, width, frame_window, location_window, KIND
        )
        for start in range(low, high, BLOCK):
            j = start + tl.arange(0, BLOCK)
            token = token_at(j, frames, locations, KIND)
            inside = j < high
            key = load_tile(k_ptr, token, k_token, inside, DIM, BLOCK_D)
            value = load_tile(v_ptr, token, v_token, inside, DIM, BLOCK_D)
            seen = _seen(u, v, j, step, frames, locations, width, frame_window, location_window, inside, KIND)
            if KIND == 2 and HAS_SINK:
                seen = seen & (j % frames > 0)[None, :]
            logits = tl.dot(q, tl.trans(key), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2_E)
            p = tl.where(seen, tl.exp2(logits - lse[:, None]), 0)
            grad_p = tl.dot(grad, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
            grad_logits = p * (grad_p - inner[:, None])
            grad_q = tl.dot(grad_logits.to(key.dtype), key, grad_q, input_precision=PRECISION, out_dtype=ACC)
    return grad_q


@triton.jit
def _query_head(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, out_ptr, grad_token, q_token, k_token, v_token,
    out_token, start, tokens, frames, locations, width, frame_window, location_window,
    SCALE: tl.constexpr, KIND: tl.constexpr, HAS_SINK: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, OWN)
    token = token_at(n, frames, locations, KIND)
    last = tl.minimum(start + OWN, tokens) - 1
    q = load_tile(q_ptr, token, q_token, n < tokens, DIM, BLOCK_D)
    grad = load_tile(grad_ptr, token, grad_token, n < tokens, DIM, BLOCK_D)
    lse = tl.load(lse_ptr + token, mask=n < tokens, other=0) * LOG2_E
    inner = tl.load(inner_ptr + token, mask=n < tokens, other=0)
    grad_q = tl.zeros([OWN, BLOCK_D], ACC)
    grad_q = _query_part(
        grad_q, q, grad, lse, inner, k_ptr, v_ptr, k_token, v_token, n, start, last, frames, locations, width,
        frame_window, location_window, SCALE, KIND, HAS_SINK, DIM, BLOCK_D, OTHER, PRECISION, ACC,
    )  # fmt: skip
    if KIND == 2 and HAS_SINK:
        grad_q = _query_part(
            grad_q, q, grad, lse, inner, k_ptr, v_ptr, k_token, v_token, n, start, last, frames, locations,
            width, frame_window, location_window, SCALE, 3, HAS_SINK, DIM, BLOCK_D, OTHER, PRECISION, ACC,
        )  # fmt: skip
    store_tile(out_ptr, token, out_token, n < tokens, grad_q * SCALE, DIM, BLOCK_D)


@triton.jit
def _query_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, kind_ptr, out_ptr, tokens, frames, locations, width,
    frame_window, location_window, grad_batch, grad_token, grad_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    SCALE: tl.constexpr, HAS_SINK: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_OWN
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    grad_ptr += batch * grad_batch + head * grad_head
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    out_ptr += batch * tokens * (HEADS * DIM) + head * DIM
    lse_ptr += (batch * HEADS + head) * tokens
    inner_ptr += (batch * HEADS + head) * tokens
    kind = tl.load(kind_ptr + head)
    if kind == 0:
        _query_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, out_ptr, grad_token, q_token, k_token, v_token,
            HEADS * DIM, start, tokens, frames, locations, width, frame_window, location_window,
            SCALE, 0, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip
    elif kind == 1:
        _query_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, out_ptr, grad_token, q_token, k_token, v_token,
            HEADS * DIM, start, tokens, frames, locations, width, frame_window, location_window,
            SCALE, 1, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip
    else:
        _query_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, out_ptr, grad_token, q_token, k_token, v_token,
            HEADS * DIM, start, tokens, frames, locations, width, frame_window, location_window,
            SCALE, 2, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip


@triton.jit
def _key_head(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, grad_token, q_token, k_token,
    v_token, out_token, start, end, tokens, frames, locations, width, frame_window, location_window,
    SCALE: tl.constexpr, KIND: tl.constexpr, HAS_SINK: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = start + tl.arange(0, OWN)
    token = token_at(n, frames, locations, KIND)
    mine = n < end
    if KIND == 2 and HAS_SINK:
        mine = mine & (n % frames > 0)
    key = load_tile(k_ptr, token, k_token, mine, DIM, BLOCK_D)
    value = load_tile(v_ptr, token, v_token, mine, DIM, BLOCK_D)
    grad_k = tl.zeros([OWN, BLOCK_D], ACC)
    grad_v = tl.zeros([OWN, BLOCK_D], ACC)
    u, v = coordinates(n, frames, locations, width, KIND)
    last = tl.minimum(start + OWN, end) - 1
    reach = location_window if KIND == 2 else 0
    for step in range(-reach, reach + 1):
        low, high = seen_range(
            start, last, step, frames, locations, width, frame_window, location_window, KIND
        )
        for first in range(low, high, OTHER):
            i = first + tl.arange(0, OTHER)
            at = token_at(i, frames, locations, KIND)
            inside = i < high
            q = load_tile(q_ptr, at, q_token, inside, DIM, BLOCK_D)
            grad = load_tile(grad_ptr, at, grad_token, inside, DIM, BLOCK_D)
            lse = tl.load(lse_ptr + at, mask=inside, other=0) * LOG2_E
            inner = tl.load(inner_ptr + at, mask=inside, other=0)
            seen = _seen(u, v, i, step, frames, locations, width, frame_window, location_window, inside, KIND)
            logits = tl.dot(key, tl.trans(q), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2_E)
            p = tl.where(seen, tl.exp2(logits - lse[None, :]), 0)
            grad_v = tl.dot(p.to(grad.dtype), grad, grad_v, input_precision=PRECISION, out_dtype=ACC)
            grad_p = tl.dot(value, tl.trans(grad), input_precision=PRECISION, out_dtype=ACC)
            grad_logits = p * (grad_p - inner[None, :])
            grad_k = tl.dot(grad_logits.to(q.dtype), q, grad_k, input_precision=PRECISION, out_dtype=ACC)
    store_tile(grad_k_ptr, token, out_token, mine, grad_k * SCALE, DIM, BLOCK_D)
    store_tile(grad_v_ptr, token, out_token, mine, grad_v, DIM, BLOCK_D)


@triton.jit
def _key_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, kind_ptr, grad_k_ptr, grad_v_ptr,
    tokens, frames, locations, width, frame_window, location_window, grad_batch, grad_token, grad_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    SCALE: tl.constexpr, HAS_SINK: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
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
    lse_ptr += (batch * HEADS + head) * tokens
    inner_ptr += (batch * HEADS + head) * tokens
    kind = tl.load(kind_ptr + head)
    start = tile * BLOCK_OWN
    if start >= tokens:  # the sink's own tiles
        if HAS_SINK:  # noqa: SIM102  a constant, which must not meet a tensor in one condition
            if kind == 2:
                sink_start = start - tl.cdiv(tokens, BLOCK_OWN) * BLOCK_OWN
                _key_head(
                    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, grad_token,
                    q_token, k_token, v_token, HEADS * DIM, sink_start, locations, tokens, frames, locations,
                    width, frame_window, location_window,
                    SCALE, 0, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
                )  # fmt: skip
    elif kind == 0:
        _key_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, grad_token, q_token,
            k_token, v_token, HEADS * DIM, start, tokens, tokens, frames, locations, width, frame_window,
            location_window, SCALE, 0, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip
    elif kind == 1:
        _key_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, grad_token, q_token,
            k_token, v_token, HEADS * DIM, start, tokens, tokens, frames, locations, width, frame_window,
            location_window, SCALE, 1, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip
    else:
        _key_head(
            grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, grad_token, q_token,
            k_token, v_token, HEADS * DIM, start, tokens, tokens, frames, locations, width, frame_window,
            location_window, SCALE, 2, HAS_SINK, DIM, BLOCK_D, BLOCK_OWN, BLOCK_OTHER, PRECISION, ACC,
        )  # fmt: skip


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    head_kind: Tensor,
    grid: tuple[int, int, int],
    *,
    frame_window: int = 0,
    location_window: int = 0,
    first_frame_sink: bool = False,
    scale: float | None = None,
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
    sizes = (tokens, grid[0], locations, grid[2], frame_window, location_window)
    strides = (*grad.stride()[:3], *query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    wide = query.element_size() > 2
    options = {
        "configs": INTERPRETER_CONFIGS if INTERPRETED else FLOAT32_CONFIGS if wide else CONFIGS,
        "key": ("HEADS", "DIM", "HAS_SINK"),
        "SCALE": dim**-0.5 if scale is None else scale,
        "HAS_SINK": first_frame_sink,
        "HEADS": heads,
        "DIM": dim,
        "BLOCK_D": block_d,
        "PRECISION": DOT_PRECISION,
        "ACC": accumulation(query.dtype),
    }

    def key_tiles(meta: dict[str, int]) -> tuple[int, int, int]:
        sink = ceil_div(locations, meta["BLOCK_OWN"]) if first_frame_sink else 0
        return ceil_div(tokens, meta["BLOCK_OWN"]) + sink, heads, batch

    launch(
        _query_kernel,
        lambda meta: (ceil_div(tokens, meta["BLOCK_OWN"]), heads, batch),
        *inputs, grads[0], *sizes, *strides, **options,
    )  # fmt: skip
    launch(_key_kernel, key_tiles, *inputs, grads[1], grads[2], *sizes, *strides, **options)
    return grads[0], grads[1], grads[2]
