# mypy: disable-error-code="no-untyped-def"
"""qk_norm_rope on Triton: RMSNorm of query and key, then 3D rotary embedding at real-valued positions.

forward(query, key, query_weight, key_weight, table, grid, axes_dim, time_per_sample, eps, norm, rotate_from,
    interleaved) -> query, key, query_rstd, key_rstd            saves the inputs, both rstd and the table
backward(grad_query, grad_key, query, key, query_weight, key_weight, query_rstd, key_rstd, table, grid,
    axes_dim, time_per_sample, norm, rotate_from, interleaved, want_query_weight, want_key_weight)
    -> grad_query, grad_key, grad_query_weight, grad_key_weight, (0,) where not wanted

query, key, grads (B,S,H,D) of one dtype, any strides (copied only if D is not dense). rstd: (B,S), (B,S,H)
per head, or (0,) without a norm. table (2, entries): cosines and sines of every axis position (rotary.py), in
the accumulation dtype like rstd. One program a token: the rows of query and key live in registers whatever
the number of heads, and share the token's cosines and sines. Interleaved pairs are loaded densely and split
in registers, because loads of every second element would be 16 bits wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fym_kernels.triton.common import (
    accumulation,
    accumulation_torch,
    chunks_of,
    config,
    dense_last,
    launch,
    power_of_two,
    sum_partials,
    token_splits,
    warps_for,
)
from fym_kernels.triton.rotary import cos_sin, load_pairs, store_pairs

NORMS = {"none": 0, "across_heads": 1, "per_head": 2}


@triton.jit
def _forward_row(
    x_ptr, weight_ptr, out_ptr, rstd_ptr, cos, sin, head_stride, weight_head,
    NORM: tl.constexpr, WEIGHTED: tl.constexpr, EPS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    firsts = ()
    seconds = ()
    square = tl.zeros([GROUP, PAIRS], ACC)
    for g in tl.static_range(GROUPS):
        a, b = load_pairs(x_ptr, g * GROUP, head_stride, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC)
        firsts = firsts + (a,)  # noqa: RUF005  triton has no star expressions
        seconds = seconds + (b,)  # noqa: RUF005
        square += a * a + b * b
    if NORM == 1:
        rstd = 1 / tl.sqrt(tl.sum(square) / (HEADS * DIM) + EPS)
        tl.store(rstd_ptr, rstd)
    for g in tl.static_range(GROUPS):
        a = firsts[g]
        b = seconds[g]
        if NORM == 1:
            a *= rstd
            b *= rstd
        if NORM == 2:
            head = g * GROUP + tl.arange(0, GROUP)
            rstd = 1 / tl.sqrt(tl.sum(a * a + b * b, 1) / DIM + EPS)
            tl.store(rstd_ptr + head, rstd, mask=head < HEADS)
            a *= rstd[:, None]
            b *= rstd[:, None]
        if WEIGHTED:
            wa, wb = load_pairs(
                weight_ptr, g * GROUP, weight_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC
            )
            a *= wa
            b *= wb
        turned_a = a * cos - b * sin
        turned_b = b * cos + a * sin
        store_pairs(out_ptr, turned_a, turned_b, g * GROUP, HEADS, DIM, GROUP, PAIRS, INTERLEAVED)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr,
    table_ptr, entries, tokens, frames, rows, columns, rotate_from, time_batch, weight_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head,
    Q_WEIGHTED: tl.constexpr, K_WEIGHTED: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    row = batch * tokens + token
    cos, sin = cos_sin(
        table_ptr, entries, token, batch, frames, rows, columns, rotate_from, time_batch, T, R, C, PAIRS
    )
    rstd_at = row * (HEADS if NORM == 2 else 1)
    out_at = row * (HEADS * DIM)
    _forward_row(
        q_ptr + batch * q_batch + token.to(tl.int64) * q_token, q_weight_ptr, q_out_ptr + out_at,
        q_rstd_ptr + rstd_at, cos, sin, q_head, weight_head,
        NORM, Q_WEIGHTED, EPS, HEADS, DIM, GROUPS, GROUP, PAIRS, INTERLEAVED, ACC,
    )  # fmt: skip
    _forward_row(
        k_ptr + batch * k_batch + token.to(tl.int64) * k_token, k_weight_ptr, k_out_ptr + out_at,
        k_rstd_ptr + rstd_at, cos, sin, k_head, weight_head,
        NORM, K_WEIGHTED, EPS, HEADS, DIM, GROUPS, GROUP, PAIRS, INTERLEAVED, ACC,
    )  # fmt: skip


def _head_tiles(heads: int, dim: int) -> tuple[int, int, int]:
    """(groups, heads a group, pairs a head) of the register tiles that cover a token's row."""
    padded = power_of_two(max(dim, 2))
    groups, group = chunks_of(heads, max(1, 1024 // padded))
    return groups, group, padded // 2


def _config(pairs: int, interleaved: bool, like: Tensor) -> triton.Config:
    """Interleaved pairs are one dense load, the others two of half the size.

    float32: told what it may use, the assembler stops spilling 8 bytes to fit one more block.
    """
    itemsize = like.element_size()
    warps = warps_for(2 * pairs if interleaved else pairs, itemsize)
    return config(warps, most_registers=128 if itemsize == 4 else None)


def _time_batch(grid: Sequence[int], axes_dim: Sequence[int], time_per_sample: bool) -> int:
    """Entries of the table from one sample's times to the next one's."""
    return grid[0] * (axes_dim[0] // 2) if time_per_sample else 0


def _check_table(
    table: Tensor, batch: int, grid: Sequence[int], axes_dim: Sequence[int], time_per_sample: bool
) -> None:
    times = batch * grid[0] if time_per_sample else grid[0]
    entries = sum(n * (dim // 2) for n, dim in zip((times, *grid[1:]), axes_dim, strict=True))
    assert table.shape == (2, entries) and table.is_contiguous()


def forward(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    table: Tensor,
    grid: Sequence[int],
    axes_dim: Sequence[int],
    time_per_sample: bool,
    eps: float,
    norm: str,
    rotate_from: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, dim = query.shape
    assert key.shape == query.shape and key.dtype == query.dtype
    _check_table(table, batch, grid, axes_dim, time_per_sample)
    acc = accumulation_torch(query.dtype)
    outs = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(2)]
    rstd_shape = {"none": (0,), "across_heads": (batch, tokens), "per_head": (batch, tokens, heads)}[norm]
    rstds = [torch.empty(rstd_shape, dtype=acc, device=query.device) for _ in range(2)]
    if query.numel():
        query, key = dense_last(query), dense_last(key)
        groups, group, pairs = _head_tiles(heads, dim)
        launch(
            _forward_kernel,
            (tokens, batch),
            query, key, _pointer(query_weight, table), _pointer(key_weight, table), *outs, *rstds,
            table, table.shape[1], tokens, *grid, rotate_from, _time_batch(grid, axes_dim, time_per_sample),
            dim if norm == "across_heads" else 0,
            *query.stride()[:3], *key.stride()[:3],
            configs=(_config(group * pairs, interleaved, query),),
            Q_WEIGHTED=query_weight is not None,
            K_WEIGHTED=key_weight is not None,
            NORM=NORMS[norm],
            EPS=eps,
            HEADS=heads,
            DIM=dim,
            GROUPS=groups,
            GROUP=group,
            PAIRS=pairs,
            INTERLEAVED=interleaved,
            ACC=accumulation(query.dtype),
            T=axes_dim[0] // 2,
            R=axes_dim[1] // 2,
            C=axes_dim[2] // 2,
        )  # fmt: skip
    return outs[0], outs[1], rstds[0], rstds[1]


def _pointer(tensor: Tensor | None, placeholder: Tensor) -> Tensor:
    return placeholder if tensor is None else tensor.contiguous()


@triton.jit
def _backward_row(
    grad_ptr, x_ptr, weight_ptr, out_ptr, rstd_ptr, cos, sin, grad_head, x_head, weight_head,
    NORM: tl.constexpr, WEIGHTED: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    # With n = x rstd and g = w (R^T grad): grad_x = rstd (g - n mean(g n))
    grads_a = ()
    grads_b = ()
    normed_a = ()
    normed_b = ()
    along = tl.zeros([GROUP, PAIRS], ACC)
    if NORM == 1:
        rstd = tl.load(rstd_ptr)
    for g in tl.static_range(GROUPS):
        da, db = load_pairs(grad_ptr, g * GROUP, grad_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC)
        ga = da * cos + db * sin
        gb = db * cos - da * sin
        if WEIGHTED:
            wa, wb = load_pairs(
                weight_ptr, g * GROUP, weight_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC
            )
            ga *= wa
            gb *= wb
        if NORM == 0:
            store_pairs(out_ptr, ga, gb, g * GROUP, HEADS, DIM, GROUP, PAIRS, INTERLEAVED)
        else:
            na, nb = load_pairs(x_ptr, g * GROUP, x_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC)
            if NORM == 2:
                head = g * GROUP + tl.arange(0, GROUP)
                rstd = tl.load(rstd_ptr + head, mask=head < HEADS, other=0)[:, None]
            na *= rstd
            nb *= rstd
            if NORM == 2:
                mean = tl.sum(ga * na + gb * nb, 1, keep_dims=True) / DIM
                ga = (ga - na * mean) * rstd
                gb = (gb - nb * mean) * rstd
                store_pairs(out_ptr, ga, gb, g * GROUP, HEADS, DIM, GROUP, PAIRS, INTERLEAVED)
            else:
                along += ga * na + gb * nb
                grads_a = grads_a + (ga,)  # noqa: RUF005
                grads_b = grads_b + (gb,)  # noqa: RUF005
                normed_a = normed_a + (na,)  # noqa: RUF005
                normed_b = normed_b + (nb,)  # noqa: RUF005
    if NORM == 1:
        mean = tl.sum(along) / (HEADS * DIM)
        for g in tl.static_range(GROUPS):
            ga = (grads_a[g] - normed_a[g] * mean) * rstd
            gb = (grads_b[g] - normed_b[g] * mean) * rstd
            store_pairs(out_ptr, ga, gb, g * GROUP, HEADS, DIM, GROUP, PAIRS, INTERLEAVED)


@triton.jit
def _backward_kernel(
    dq_ptr, dk_ptr, q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr,
    table_ptr, entries, tokens, frames, rows, columns, rotate_from, time_batch, weight_head,
    dq_batch, dq_token, dq_head, dk_batch, dk_token, dk_head,
    q_batch, q_token, q_head, k_batch, k_token, k_head,
    Q_WEIGHTED: tl.constexpr, K_WEIGHTED: tl.constexpr,
    NORM: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    long_token = token.to(tl.int64)
    row = batch * tokens + token
    cos, sin = cos_sin(
        table_ptr, entries, token, batch, frames, rows, columns, rotate_from, time_batch, T, R, C, PAIRS
    )
    rstd_at = row * (HEADS if NORM == 2 else 1)
    out_at = row * (HEADS * DIM)
    _backward_row(
        dq_ptr + batch * dq_batch + long_token * dq_token, q_ptr + batch * q_batch + long_token * q_token,
        q_weight_ptr, q_out_ptr + out_at, q_rstd_ptr + rstd_at, cos, sin, dq_head, q_head, weight_head,
        NORM, Q_WEIGHTED, HEADS, DIM, GROUPS, GROUP, PAIRS, INTERLEAVED, ACC,
    )  # fmt: skip
    _backward_row(
        dk_ptr + batch * dk_batch + long_token * dk_token, k_ptr + batch * k_batch + long_token * k_token,
        k_weight_ptr, k_out_ptr + out_at, k_rstd_ptr + rstd_at, cos, sin, dk_head, k_head, weight_head,
        NORM, K_WEIGHTED, HEADS, DIM, GROUPS, GROUP, PAIRS, INTERLEAVED, ACC,
    )  # fmt: skip


@triton.jit
def _backward_weight_kernel(
    grad_ptr, x_ptr, rstd_ptr, partials_ptr, table_ptr, entries, tokens, tokens_per_split,
    frames, rows, columns, rotate_from, time_batch,
    grad_batch, grad_token, grad_head, x_batch, x_token, x_head,
    NORM: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    GROUP: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, ACC: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    first_head = tl.program_id(1) * GROUP
    head = first_head + tl.arange(0, GROUP)
    first = tl.program_id(0) * tokens_per_split
    total_a = tl.zeros([GROUP, PAIRS], ACC)
    total_b = tl.zeros([GROUP, PAIRS], ACC)
    for token in range(first, tl.minimum(first + tokens_per_split, tokens)):
        cos, sin = cos_sin(
            table_ptr, entries, token, batch, frames, rows, columns, rotate_from, time_batch, T, R, C, PAIRS
        )
        grad_at = grad_ptr + batch * grad_batch + tl.cast(token, tl.int64) * grad_token
        x_at = x_ptr + batch * x_batch + tl.cast(token, tl.int64) * x_token
        da, db = load_pairs(grad_at, first_head, grad_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC)
        a, b = load_pairs(x_at, first_head, x_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED, ACC)
        if NORM == 1:
            rstd = tl.load(rstd_ptr + batch * tokens + token)
        else:
            at = (batch * tokens + token) * HEADS + head
            rstd = tl.load(rstd_ptr + at, mask=head < HEADS, other=0)[:, None]
        total_a += (da * cos + db * sin) * a * rstd
        total_b += (db * cos - da * sin) * b * rstd
    partials_ptr += (batch * tl.num_programs(0) + tl.program_id(0)) * (HEADS * DIM)
    store_pairs(partials_ptr, total_a, total_b, first_head, HEADS, DIM, GROUP, PAIRS, INTERLEAVED)


def backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    query_rstd: Tensor,
    key_rstd: Tensor,
    table: Tensor,
    grid: Sequence[int],
    axes_dim: Sequence[int],
    time_per_sample: bool,
    norm: str,
    rotate_from: int,
    interleaved: bool,
    want_query_weight: bool,
    want_key_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, dim = query.shape
    assert grad_query.shape == grad_key.shape == key.shape == query.shape
    grads = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(2)]
    weight_grads = [query.new_empty(0), query.new_empty(0)]
    groups, group, pairs = _head_tiles(heads, dim)
    _check_table(table, batch, grid, axes_dim, time_per_sample)
    assert query_rstd.is_contiguous() and key_rstd.is_contiguous()
    place = (*grid, rotate_from, _time_batch(grid, axes_dim, time_per_sample))
    constants = {
        "NORM": NORMS[norm],
        "HEADS": heads,
        "DIM": dim,
        "GROUP": group,
        "PAIRS": pairs,
        "INTERLEAVED": interleaved,
        "ACC": accumulation(query.dtype),
        "T": axes_dim[0] // 2,
        "R": axes_dim[1] // 2,
        "C": axes_dim[2] // 2,
    }
    configs = (_config(group * pairs, interleaved, query),)
    query, key, grad_query, grad_key = (dense_last(x) for x in (query, key, grad_query, grad_key))
    if query.numel():
        launch(
            _backward_kernel,
            (tokens, batch),
            grad_query, grad_key, query, key,
            _pointer(query_weight, table), _pointer(key_weight, table), *grads,
            query_rstd, key_rstd, table, table.shape[1], tokens, *place,
            dim if norm == "across_heads" else 0,
            *grad_query.stride()[:3], *grad_key.stride()[:3], *query.stride()[:3], *key.stride()[:3],
            configs=configs,
            Q_WEIGHTED=query_weight is not None,
            K_WEIGHTED=key_weight is not None,
            GROUPS=groups,
            **constants,
        )  # fmt: skip
    sides = (
        (grad_query, query, query_rstd, query_weight, want_query_weight),
        (grad_key, key, key_rstd, key_weight, want_key_weight),
    )
    for side, (grad, x, rstd, weight, wanted) in enumerate(sides):
        if weight is None or not wanted:
            continue
        splits, per_split = token_splits(tokens, 1)
        partials = torch.zeros(batch, splits, heads * dim, dtype=rstd.dtype, device=x.device)
        if x.numel():
            launch(
                _backward_weight_kernel,
                (splits, groups, batch),
                grad, x, rstd, partials, table, table.shape[1], tokens, per_split, *place,
                *grad.stride()[:3], *x.stride()[:3],
                configs=configs,
                **constants,
            )  # fmt: skip
        # per_head: every head's sum goes into the one (D,) weight
        parts = partials.view(1, -1, weight.numel())
        weight_grads[side] = sum_partials(parts, weight.dtype).view(weight.shape)
    return grads[0], grads[1], weight_grads[0], weight_grads[1]
