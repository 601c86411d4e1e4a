"""How much of each head's attention stays in its own frame and how much at its own location."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fym_kernels import checks

CHUNK_ELEMENTS = 1 << 21  # entries of the attention map alive at once: 8 MiB in float32


class HeadScores(NamedTuple):
    """Averages over query rows, each (B,H): mass in the spatial band, in the temporal band, sum of p^2.

    The cosine of an attention map with a band is mass * rows / sqrt(square * rows * number of ones in the
    band).
    """

    spatial: Tensor
    temporal: Tensor
    square: Tensor


def check(
    query: Tensor, key: Tensor, grid: tuple[int, int, int], band: float, rows: Tensor | None
) -> tuple[int, int, int]:
    checks.floating("query", query)
    checks.rank("query", query, "BSHD")
    checks.floating("key", key, query)
    checks.same_dtype("key", key, "query", query)
    checks.shape("key", key, tuple(query.shape))
    sizes = checks.grid_of("grid", grid, query.shape[1])
    if not band > 0:
        raise ValueError(f"band must be > 0, got {band}")
    if query.shape[1] == 0:
        raise ValueError("query must hold at least one token")
    if rows is not None:
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1 or rows.numel() == 0:
            raise ValueError("rows must be a non-empty 1-D int64 tensor of query tokens, or None for all")
        if rows.device.type != "cpu" or torch.compiler.is_compiling():
            return sizes  # values on an accelerator are not read back
        if int(rows.min()) < 0 or int(rows.max()) >= query.shape[1]:
            raise ValueError(
                f"rows must lie in 0..{query.shape[1] - 1}, got {int(rows.min())}..{int(rows.max())}"
            )
    return sizes


@torch.no_grad()
def head_scores(
    query: Tensor,
    key: Tensor,
    grid: tuple[int, int, int],
    *,
    band: float = 1.0,
    rows: Tensor | None = None,
) -> HeadScores:
    """Band masses of softmax(Q K^T / sqrt(D)), row chunk by row chunk: no S x S map is ever kept.

    query, key: (B,S,H,D) after norm and rotary; grid: (F',H',W') with S = F'H'W', frames slowest, P = H'W'.
    Token j is in the spatial band of i iff |i-j| < band * P; in the temporal band the same holds for the
    order p F' + f (location slowest). rows: query tokens to look at, None = all. No gradient.
    """
    frames, height, width = check(query, key, grid, band, rows)
    batch, tokens, heads, dim = query.shape
    acc = checks.accumulation_dtype(query.dtype)
    device = query.device
    locations = height * width
    reach = math.ceil(band * locations)  # |n| < x and |n| < ceil(x) are the same for whole n

    token = torch.arange(tokens, device=device)
    time_order = token % locations * frames + token // locations
    row_index = token if rows is None else rows.to(device)
    chunk = max(1, CHUNK_ELEMENTS // tokens)
    sums = torch.zeros(3, batch, heads, dtype=acc, device=device)
    for piece in row_index.split(chunk):
        near_frame = (piece[:, None] - token).abs() < reach
        near_place = (time_order[piece][:, None] - time_order).abs() < reach
        for b in range(batch):
            for h in range(heads):
                logits = query[b, piece, h].to(acc) @ key[b, :, h].to(acc).T
                map_RS = logits.mul_(dim**-0.5).softmax(-1)
                sums[2, b, h] += map_RS.square().sum()
                sums[0, b, h] += map_RS.mul(near_frame).sum()
                sums[1, b, h] += map_RS.mul_(near_place).sum()
    spatial, temporal, square = (sums / row_index.numel()).unbind(0)
    return HeadScores(spatial, temporal, square)
