# mypy: disable-error-code="no-untyped-def"
"""head_scores on Triton: the band masses of softmax(Q K^T / sqrt(D)) in one streaming pass over the keys.

forward(query, key, grid, band, rows) -> (spatial, temporal, square)      each (B,H), rows averaged

query, key (B,S,H,D) in any strides (copied only if D is not dense). Online softmax: beside the running
maximum and sum, every query row carries sum(p) over both bands and sum(p^2), rescaled when its maximum grows.
Nothing of size S x S exists; band membership is arithmetic on token numbers. Partial sums per tile of rows,
added in a fixed order. There is no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    dense_last,
    launch,
    power_of_two,
    sum_partials,
)

# Five reductions a tile make this the most register-hungry of the dot kernels: 8 warps hold 64 keys a step,
# and 4 warps 32, with two blocks a multiprocessor. The row tile is fixed: sums are per row tile.
CONFIGS = (config(8, 3, BLOCK_N=64), config(4, 3, BLOCK_N=32))
FLOAT32_CONFIGS = (config(8, 2, BLOCK_N=16),)  # three tf32 terms take more registers
INTERPRETER_CONFIGS = (config(1, 1, BLOCK_N=16),)


@triton.jit
def _scores_kernel(
    q_ptr, k_ptr, rows_ptr, partials_ptr, count, tokens, frames, locations, reach,
    q_batch, q_token, q_head, k_batch, k_token, k_head,
    SCALE: tl.constexpr, SAMPLED: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    i = tl.load(rows_ptr + m, mask=m < count, other=0).to(tl.int32) if SAMPLED else m
    i_time = i % locations * frames + i // locations  # its number when locations are the slow axis
    q_ptr += batch * q_batch + head * q_head + i.to(tl.int64)[:, None] * q_token + d[None, :]
    k_ptr += batch * k_batch + head * k_head + d[:, None]
    q = tl.load(q_ptr, mask=(m < count)[:, None] & (d < DIM)[None, :], other=0)
    top = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    spatial = tl.zeros([BLOCK_M], ACC)
    temporal = tl.zeros([BLOCK_M], ACC)
    square = tl.zeros([BLOCK_M], ACC)
    for start in range(0, tokens, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        k_at = k_ptr + j.to(tl.int64)[None, :] * k_token
        k = tl.load(k_at, mask=(j < tokens)[None, :] & (d < DIM)[:, None], other=0)
        logits = tl.dot(q, k, input_precision=PRECISION, out_dtype=ACC) * SCALE
        logits = tl.where((j < tokens)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        faded = tl.exp2(top - new_top)
        p = tl.exp2(logits - new_top[:, None])
        away = i[:, None] - j[None, :]
        j_time = j % locations * frames + j // locations
        away_time = i_time[:, None] - j_time[None, :]
        near = (away < reach) & (away > -reach)
        near_time = (away_time < reach) & (away_time > -reach)
        total = total * faded + tl.sum(p, 1)
        spatial = spatial * faded + tl.sum(tl.where(near, p, 0), 1)
        temporal = temporal * faded + tl.sum(tl.where(near_time, p, 0), 1)
        square = square * faded * faded + tl.sum(p * p, 1)
        top = new_top
    share = tl.where(m < count, 1 / total, 0)
    partials_ptr += ((batch * tl.num_programs(1) + head) * tl.num_programs(0) + tl.program_id(0)) * 3
    tl.store(partials_ptr, tl.sum(spatial * share, 0))
    tl.store(partials_ptr + 1, tl.sum(temporal * share, 0))
    tl.store(partials_ptr + 2, tl.sum(square * share * share, 0))


def forward(
    query: Tensor,
    key: Tensor,
    grid: Sequence[int],
    band: float,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, dim = query.shape
    assert key.shape == query.shape and key.dtype == query.dtype
    frames, locations = grid[0], grid[1] * grid[2]
    assert frames * locations == tokens > 0
    query, key = dense_last(query), dense_last(key)
    count = tokens if rows is None else rows.numel()
    rows_at = query if rows is None else rows.to(query.device)
    acc = accumulation_torch(query.dtype)
    wide = query.element_size() > 2
    block_m = 16 if INTERPRETED else 64 if wide else 128
    row_tiles = ceil_div(count, block_m)
    partials = torch.empty(batch * heads, row_tiles, 3, dtype=acc, device=query.device)
    if partials.numel():
        launch(
            _scores_kernel,
            (row_tiles, heads, batch),
            query, key, rows_at, partials, count, tokens, frames, locations,
            min(math.ceil(band * locations), tokens), *query.stride()[:3], *key.stride()[:3],
            configs=INTERPRETER_CONFIGS if INTERPRETED else FLOAT32_CONFIGS if wide else CONFIGS,
            key=("DIM", "SAMPLED"),
            SCALE=dim**-0.5 * math.log2(math.e),
            SAMPLED=rows is not None,
            DIM=dim,
            BLOCK_M=block_m,
            BLOCK_D=max(16, power_of_two(dim)),
            PRECISION=DOT_PRECISION,
            ACC=accumulation(query.dtype),
        )  # fmt: skip
    sums = (sum_partials(partials, acc) / count).view(batch, heads, 3)
    spatial, temporal, square = (part.clone() for part in sums.unbind(2))
    return spatial, temporal, square
