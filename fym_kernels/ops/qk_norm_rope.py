"""qk_norm_rope: RMSNorm of query and key, then 3D rotary embedding at real-valued positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.ops.rotary_table import rotary_table
from fym_kernels.reference.qk_norm_rope import Positions, check

# rope_most_width and rope_weight_threads of csrc/cuda/qk_norm_rope.cuh
CUDA_MOST_WIDTH = 8192
CUDA_MOST_UNITS = 256


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    positions: Positions,
    *,
    axes_dim: tuple[int, int, int],
    theta: float = 10000.0,
    eps: float = 1e-6,
    norm: str | None = "across_heads",
    rotate_from: int = 0,
    interleaved: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Query and key (B,S,H,D), normalised and rotated, in their own dtype. Strided views are welcome.

    Weights: (H*D,) for norm="across_heads", (D,) for "per_head", or None; norm=None only rotates.
    positions: (time, row, column), time (F',) or (B,F'), row (H',), column (W',): real numbers, float64,
    float32 or int. axes_dim: head channels per axis, even, with sum D. Angles are position * theta^(-2j/n)
    in float64. Tokens rotate_from .. rotate_from + F'H'W' rotate; the others (text) are only normalised.
    interleaved: pairs are (2j, 2j+1), otherwise (j, j + D/2). Gradients of positions are the reference's;
    the native kernels copy views whose last dimension is not dense, and take any other stride as it is.
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("qk_norm_rope", query, backend)
    new_query, new_key = run(
        query,
        key,
        query_weight,
        key_weight,
        positions,
        axes_dim=axes_dim,
        theta=theta,
        eps=eps,
        norm=norm,
        rotate_from=rotate_from,
        interleaved=interleaved,
    )
    return new_query, new_key


def _run(
    op: Any,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    positions: Positions,
    *,
    axes_dim: tuple[int, int, int],
    theta: float,
    eps: float,
    norm: str | None,
    rotate_from: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    check(query, key, query_weight, key_weight, positions, axes_dim, eps, norm, rotate_from)
    if torch.is_grad_enabled() and any(p.requires_grad for p in positions):
        return reference.qk_norm_rope(
            query,
            key,
            query_weight,
            key_weight,
            positions,
            axes_dim=axes_dim,
            theta=theta,
            eps=eps,
            norm=norm,
            rotate_from=rotate_from,
            interleaved=interleaved,
        )
    acc = accumulation_dtype(query.dtype)
    query_weight, key_weight = (
        w.to(acc) if w is not None and w.dtype == torch.float64 else w for w in (query_weight, key_weight)
    )
    rotation = turn(query, positions, axes_dim, theta)
    new_query, new_key, _, _ = op(
        query, key, query_weight, key_weight, *rotation, eps, norm or "none", rotate_from, interleaved
    )
    return new_query, new_key


def turn(
    query: Tensor, positions: Positions, axes_dim: tuple[int, int, int], theta: float = 10000.0
) -> tuple[Tensor, list[int], list[int], bool]:
    """What the torch ops take for `positions` and `axes_dim`: table, grid, axes, is time per sample."""
    time, row, column = positions
    time_dim, row_dim, column_dim = axes_dim  # may have come as a list
    acc = accumulation_dtype(query.dtype)
    table = rotary_table(positions, (time_dim, row_dim, column_dim), theta, query.device, acc)
    return table, [time.shape[-1], row.shape[0], column.shape[0]], list(axes_dim), time.ndim == 2


def _cuda_limit(query: Tensor) -> str:
    """rope_fits of csrc/cuda/qk_norm_rope.cuh: a thread's unit of a head is two vectors of 16 bytes."""
    if query.ndim != 4:
        return ""
    heads, dim = query.shape[2:]
    unit = 32 // query.element_size()
    units = -(-dim // unit)
    if heads * units * unit <= CUDA_MOST_WIDTH and units <= CUDA_MOST_UNITS:
        return ""
    return (
        f"the cuda kernel holds at most {CUDA_MOST_WIDTH} channels a token and"
        f" {CUDA_MOST_UNITS * unit} a head, got {heads} heads of {dim}"
    )


def _rstd_shape(query: Tensor, norm: str) -> tuple[int, ...]:
    return {"across_heads": query.shape[:2], "per_head": query.shape[:3], "none": (0,)}[norm]


def _fake(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    table: Tensor,
    grid: list[int],
    axes_dim: list[int],
    time_per_sample: bool,
    eps: float,
    norm: str,
    rotate_from: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rstd = query.new_empty(_rstd_shape(query, norm), dtype=accumulation_dtype(query.dtype))
    return query.new_empty(query.shape), key.new_empty(key.shape), rstd, torch.empty_like(rstd)


def _fake_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    query_rstd: Tensor,
    key_rstd: Tensor,
    table: Tensor,
    grid: list[int],
    axes_dim: list[int],
    time_per_sample: bool,
    norm: str,
    rotate_from: int,
    interleaved: bool,
    want_query_weight: bool,
    want_key_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def grad(weight: Tensor | None, wanted: bool) -> Tensor:
        return query.new_empty(0) if weight is None or not wanted else weight.new_empty(weight.shape)

    grad_weights = grad(query_weight, want_query_weight), grad(key_weight, want_key_weight)
    return query.new_empty(query.shape), key.new_empty(key.shape), *grad_weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, query_weight, key_weight, table, grid, axes_dim, time_per_sample, _, norm, *rest = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.options = grid, axes_dim, time_per_sample, norm, *rest
    rotate_only = norm == "none"  # then the backward pass reads no input
    saved = (None, None) if rotate_only else (query, key)
    ctx.save_for_backward(*saved, query_weight, key_weight, *output[2:], table)


def _backward(
    op: Any, ctx: Any, grad_query: Tensor | None, grad_key: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    rest = (None,) * 8
    if grad_query is None and grad_key is None:
        return None, None, None, None, *rest
    grad_query = torch.zeros_like(grad_key) if grad_query is None else grad_query  # type: ignore[arg-type]
    grad_key = torch.zeros_like(grad_query) if grad_key is None else grad_key
    query, key, *others = ctx.saved_tensors
    if query is None:
        query, key = grad_query, grad_key
    need = ctx.needs_input_grad[:4]
    grads = op(grad_query, grad_key, query, key, *others, *ctx.options, need[2], need[3])
    return *(g if n else None for g, n in zip(grads, need, strict=True)), *rest


backends.register("qk_norm_rope", "reference", reference.qk_norm_rope)
native.describe(
    "qk_norm_rope",
    run=_run,
    fakes={"qk_norm_rope": _fake, "qk_norm_rope_backward": _fake_backward},
    save=_save,
    backward=_backward,
    limits={"cuda": _cuda_limit},
)
