# mypy: disable-error-code="no-untyped-def"
"""head_attention on Triton: full, spatial and temporal heads in one launch, each visiting what it may see.

forward(query, key, value, head_kind, grid, frame_window, location_window, first_frame_sink, scale)
    -> out (B,S,H,D), logsumexp (B,H,S)                saves query, key, value, out, logsumexp
backward(grad, query, key, value, out, logsumexp, head_kind, grid, <the same options>)
    -> (grad_query, grad_key, grad_value)              in attention_backward.py, reached from here

query, key, value, grad (B,S,H,D) in any strides (copied only if D is not dense). head_kind (H,) int8 is read
by the kernel: 0 full, 1 spatial, 2 temporal; its values are not checked. Products in the storage dtype,
softmax and sums in the accumulation dtype; no atomics: the same bits on every run of one configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.attention_backward import backward
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
    accumulation_torch,
    ceil_div,
    config,
    dense_last,
    for_device,
    launch,
    power_of_two,
)

# Query rows x keys of a tile, by the largest head dim and the oldest architecture they are for, chosen by
# what fits the registers (tests compile them all). 128 x 64 on 8 warps is what the asynchronous tensor cores
# of sm_90 and later want; sm_80 keeps operands in registers and halves the keys. 64 rows leave less idle
# where a band is narrow: one location's frames, or a small frame.
CONFIGS = {
    64: {
        80: (config(8, 3, BLOCK_M=128, BLOCK_N=64), config(4, 3, BLOCK_M=64, BLOCK_N=32)),
        90: (config(8, 3, BLOCK_M=128, BLOCK_N=64), config(4, 3, BLOCK_M=64, BLOCK_N=64)),
        100: (config(8, 3, BLOCK_M=128, BLOCK_N=64), config(4, 3, BLOCK_M=64, BLOCK_N=32)),
    },
    128: {
        80: (config(8, 3, BLOCK_M=128, BLOCK_N=32), config(8, 3, BLOCK_M=64, BLOCK_N=64)),
        90: (config(8, 3, BLOCK_M=128, BLOCK_N=64), config(4, 3, BLOCK_M=64, BLOCK_N=64)),
        100: (config(8, 3, BLOCK_M=128, BLOCK_N=64), config(8, 3, BLOCK_M=64, BLOCK_N=64)),
    },
}
# three tf32 terms take more registers; told what it may use, the assembler does not spill for one more block
FLOAT32_CONFIGS = (config(8, 2, most_registers=255, BLOCK_M=32, BLOCK_N=16),)
INTERPRETER_CONFIGS = (config(1, 1, BLOCK_M=16, BLOCK_N=16),)
LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))

__all__ = ["backward", "forward"]


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, kind_ptr, tokens, frames, locations, width,
    frame_window, location_window, sink,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    SCALE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    out_ptr += batch * tokens * (HEADS * DIM) + head * DIM
    lse_ptr += (batch * HEADS + head) * tokens
    kind = tl.load(kind_ptr + head).to(tl.int32)
    own_inner = tl.where(kind == 2, frames, 1)
    line = line_length(kind, locations, width)
    windows = band_count(kind, location_window)
    skip = tl.where(kind == 2, sink, 0)  # temporal heads leave the first frame to a band of its own

    n = start + tl.arange(0, BLOCK_M)
    last = tl.minimum(start + BLOCK_M, tokens) - 1
    token = token_at(n, own_inner, locations)
    q = load_tile(q_ptr, token, q_token, n < tokens, DIM, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    top = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
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
        for first in range(low, high, BLOCK_N):
            j = first + tl.arange(0, BLOCK_N)
            at = token_at(j, inner, locations)
            k = load_tile(k_ptr, at, k_token, j < high, DIM, BLOCK_D)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * SCALE
            if windowed | (first + BLOCK_N > high):  # whole tiles of a full head need no mask
                seen = visible(kind, step, n, j, inner, line, frame_window, location_window)
                seen = (seen & (j % inner >= skip)[None, :]) | (windowed == 0)
                logits = tl.where(seen & (j < high)[None, :], logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, 1))
            base = tl.where(new_top == float("-inf"), 0, new_top)  # rows that have seen nothing yet
            faded = tl.exp2(top - base)
            p = tl.exp2(logits - base[:, None])
            v = load_tile(v_ptr, at, v_token, j < high, DIM, BLOCK_D)
            total = total * faded + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * faded[:, None], input_precision=PRECISION, out_dtype=ACC)
            top = new_top
    store_tile(out_ptr, token, HEADS * DIM, n < tokens, acc / total[:, None], DIM, BLOCK_D)
    tl.store(lse_ptr + token, (top + tl.log2(total)) * LN_2, mask=n < tokens)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_kind: Tensor,
    grid: Sequence[int],
    frame_window: int,
    location_window: int,
    first_frame_sink: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = query.shape
    assert key.shape == value.shape == query.shape and key.dtype == value.dtype == query.dtype
    assert head_kind.shape == (heads,) and grid[0] * grid[1] * grid[2] == tokens
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    acc = accumulation_torch(query.dtype)
    lse = torch.empty(batch, heads, tokens, dtype=acc, device=query.device)
    if out.numel() == 0:
        return out, lse
    query, key, value = dense_last(query), dense_last(key), dense_last(value)
    fixed = INTERPRETER_CONFIGS if INTERPRETED else FLOAT32_CONFIGS if query.element_size() > 2 else None
    launch(
        _forward_kernel,
        lambda meta: (ceil_div(tokens, meta["BLOCK_M"]), heads, batch),
        query, key, value, out, lse, head_kind.to(query.device), tokens, grid[0], grid[1] * grid[2], grid[2],
        frame_window, location_window, int(first_frame_sink),
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        configs=fixed or for_device(CONFIGS[64 if dim <= 64 else 128], query),
        key=("HEADS", "DIM"),
        SCALE=scale * LOG2_E,
        HEADS=heads,
        DIM=dim,
        BLOCK_D=max(16, power_of_two(dim)),
        PRECISION=DOT_PRECISION,
        ACC=accumulation(query.dtype),
    )  # fmt: skip
    return out, lse
