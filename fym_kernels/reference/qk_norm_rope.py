"""RMSNorm of query and key, then 3D rotary embedding at real-valued positions."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fym_kernels import checks

Positions: TypeAlias = tuple[Tensor, Tensor, Tensor]
POSITION_DTYPES = (torch.float64, torch.float32, torch.int64, torch.int32)
NORMS = ("across_heads", "per_head", None)


def check(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    positions: Positions,
    axes_dim: tuple[int, int, int],
    eps: float,
    norm: str | None,
    rotate_from: int,
) -> None:
    checks.floating("query", query)
    checks.rank("query", query, "BSHD")
    checks.floating("key", key, query)
    checks.same_dtype("key", key, "query", query)
    checks.shape("key", key, tuple(query.shape))
    batch, tokens, heads, dim = query.shape
    if norm not in NORMS:
        raise ValueError(f"norm must be 'across_heads', 'per_head' or None, got {norm!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    for name, weight in (("query_weight", query_weight), ("key_weight", key_weight)):
        if weight is None:
            continue
        if norm is None:
            raise ValueError(f"{name} must be None when norm is None")
        checks.floating(name, weight, query)
        checks.shape(name, weight, (heads * dim,) if norm == "across_heads" else (dim,))
    if len(axes_dim) != 3 or any(n < 0 or n % 2 for n in axes_dim) or sum(axes_dim) != dim:
        raise ValueError(f"axes_dim must be three even numbers with sum {dim} (the head dim), got {axes_dim}")
    if not isinstance(positions, tuple | list) or len(positions) != 3:
        raise ValueError("positions must be three tensors (time, row, column)")
    for axis, position in enumerate(positions):
        if not isinstance(position, Tensor) or position.dtype not in POSITION_DTYPES:
            got = checks.show(position.dtype) if isinstance(position, Tensor) else type(position).__name__
            raise ValueError(f"positions[{axis}] must be a float64, float32 or integer tensor, got {got}")
        if position.ndim != 1 and not (axis == 0 and position.ndim == 2 and position.shape[0] == batch):
            allowed = f"(F,) or ({batch}, F)" if axis == 0 else "1-D"
            raise ValueError(f"positions[{axis}] must be {allowed}, got shape {tuple(position.shape)}")
    rotated = positions[0].shape[-1] * positions[1].shape[0] * positions[2].shape[0]
    if rotate_from < 0 or rotate_from + rotated > tokens:
        raise ValueError(
            f"positions span {rotated} tokens from rotate_from={rotate_from}, but query has {tokens} tokens"
        )


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
) -> tuple[Tensor, Tensor]:
    """Query and key (B,S,H,D), normalised and rotated, contiguous, in their own dtype.

    query_weight, key_weight: (H*D,) for norm="across_heads", (D,) for "per_head", or None.
    positions: (time, row, column), time (F',) or (B,F'), row (H',), column (W',); float64, float32 or int.
    axes_dim: head channels each axis turns, e.g. (44, 42, 42). The angle of pair j of an axis with n
    channels is position * theta^(-2j/n), in float64 up to its cosine and sine.
    Tokens rotate_from .. rotate_from + F'H'W' rotate, the others (text) are only normalised.
    interleaved: pairs are channels (2j, 2j+1), as in Wan; otherwise (j, j + D/2).
    With positions 0, 1, 2, ... in float32 on CPU this equals torch.nn.RMSNorm followed by diffusers'
    WanRotaryPosEmbed bit for bit.
    """
    check(query, key, query_weight, key_weight, positions, axes_dim, eps, norm, rotate_from)
    acc = checks.accumulation_dtype(query.dtype)
    cos, sin = (
        table.to(acc).to(query.device)
        for table in rotary_tables(positions, axes_dim, theta, query.shape[1], rotate_from, interleaved)
    )
    outputs = []
    for x, weight in ((query, query_weight), (key, key_weight)):
        normed = x.to(acc) if norm is None else rms_norm(x, weight, eps, across_heads=norm == "across_heads")
        outputs.append(rotate(normed, cos, sin, interleaved).to(x.dtype))
    return outputs[0], outputs[1]


def rotary_tables(
    positions: Positions,
    axes_dim: tuple[int, int, int],
    theta: float,
    tokens: int,
    rotate_from: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """float64 cosines and sines (1 or B, tokens, 1, D), each pair's value at both its channels."""
    angles = []
    for position, channels in zip(positions, axes_dim, strict=True):
        exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=position.device) / channels
        angles.append(position.to(torch.float64).unsqueeze(-1) * (1.0 / theta**exponent))
    time, row, column = angles
    time = time.unsqueeze(0) if time.ndim == 2 else time
    frames, height, width = time.shape[1], row.shape[0], column.shape[0]
    tables = []
    for function, still in ((torch.cos, 1.0), (torch.sin, 0.0)):
        grid = time.shape[0], frames, height, width
        per_pair = torch.cat(
            (
                function(time)[:, :, None, None].expand(*grid, -1),
                function(row)[None, None, :, None].expand(*grid, -1),
                function(column)[None, None, None].expand(*grid, -1),
            ),
            dim=-1,
        ).flatten(1, 3)
        rest = tokens - rotate_from - per_pair.shape[1]
        if rotate_from or rest:  # tokens outside the grid turn by nothing
            per_pair = F.pad(per_pair, (0, 0, rotate_from, rest), value=still)
        table = per_pair.repeat_interleave(2, -1) if interleaved else torch.cat((per_pair, per_pair), -1)
        tables.append(table.unsqueeze(2))
    return tables[0], tables[1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the channel pairs of x (B,S,H,D): (a, b) -> (a cos - b sin, b cos + a sin)."""
    if interleaved:
        # (a, b) -> (-b, a) is multiplication by i: exact, and quicker on CPU than stride-2 slices
        pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * 1j).flatten(-2)
    else:
        a, b = x.chunk(2, -1)
        turned = torch.cat((-b, a), -1)
    return x * cos + turned * sin


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, *, across_heads: bool) -> Tensor:
    """x (B,S,H,D) over its root mean square of all heads together, or of each head; accumulation dtype."""
    if not across_heads:
        return _apply_rms_norm(x, weight, eps)
    return _apply_rms_norm(x.flatten(2), weight, eps).unflatten(2, x.shape[2:])


def _apply_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    normed: Tensor = _RmsNorm.apply(x, weight, eps)
    return normed


class _RmsNorm(torch.autograd.Function):
    """torch's RMSNorm over the last dimension, with the closed-form gradient.

    torch differentiates it step by step on CPU, which takes about four times as long and keeps three
    tensors instead of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        acc = checks.accumulation_dtype(x.dtype)
        return F.rms_norm(x.to(acc), x.shape[-1:], None if weight is None else weight.to(acc), eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        saved_x, saved_weight = ctx.saved_tensors
        x = saved_x.to(grad.dtype)
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            scaled = grad if saved_weight is None else grad * saved_weight.to(grad.dtype)
            along_x = torch.linalg.vecdot(scaled, x).unsqueeze(-1) * rstd.square() / x.shape[-1]
            grad_x = ((scaled - x * along_x) * rstd).to(saved_x.dtype)
        if saved_weight is not None and ctx.needs_input_grad[1]:
            grad_weight = (grad * x * rstd).flatten(0, -2).sum(0).to(saved_weight.dtype)
        return grad_x, grad_weight, None
