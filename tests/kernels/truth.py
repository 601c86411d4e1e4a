"""Every op once more, written out from its definition with loops and dense masks, and how close is close.

Nothing here shares code with fym_kernels. Each function computes in the dtype of its inputs: in float64 it is
the truth; in the dtype under test it is the naive path whose error the kernels are held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FACTOR = 1.5  # times the naive path's error
LOW_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating tensor in it (also in tuples) as `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return tuple(cast(v, dtype) for v in value) if isinstance(value, tuple) else value


def magnitudes(value: Any) -> Any:
    """`value` (or a tuple of such) in float64 and without signs, so that no sum of its numbers cancels."""
    if isinstance(value, Tensor):
        return value.double().abs() if value.is_floating_point() else value
    return tuple(map(magnitudes, value)) if isinstance(value, tuple) else value


def assert_same_bits_for_any_threads(run: Callable[[], Sequence[Tensor]]) -> None:
    """Tensors of run() do not change with the number of threads, nor from call to call."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def assert_as_good_as_naive(
    results: Tensor | Sequence[Tensor],
    naive: Callable[..., Any],
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    *,
    roundings: float = 1,
    sizes: Sequence[Tensor] | None = None,
) -> None:
    """The error against float64, over a whole tensor, is at most FACTOR times the naive path's in `dtype`.

    Both see the same inputs, already rounded to `dtype`. Added are `roundings` of the result, or of `sizes`,
    what the result would be if nothing cancelled: two orders of summation err differently, and a sum that
    cancels has no digits to compare. No one element errs by much more than the naive path's worst.
    """
    truths, naives = naive(*cast(inputs, torch.float64)), naive(*inputs)
    if isinstance(results, Tensor):
        results, truths, naives = (results,), (truths,), (naives,)
    assert len(results) == len(truths)
    eps = torch.finfo(dtype).eps
    for result, truth, rough, size in zip(results, truths, naives, sizes or truths, strict=True):
        assert result.dtype == dtype or result.dtype == torch.float32
        assert result.shape == truth.shape
        if truth.numel() == 0:
            continue
        error, naive_error = result.double() - truth, rough.double() - truth
        allowed = FACTOR * naive_error.norm() + roundings * eps * size.norm()
        assert error.norm() <= allowed, f"error {error.norm():.3g}, allowed {allowed:.3g}"
        worst = 2 * FACTOR * naive_error.abs().max() + 8 * roundings * eps * size.abs().max()
        assert error.abs().max() <= worst, f"largest error {error.abs().max():.3g}, allowed {worst:.3g}"


def rotated(
    x: Tensor, weight: Tensor | None, positions, axes_dim, theta, eps, norm, rotate_from, interleaved
) -> Tensor:
    """qk_norm_rope of one tensor, token by token and pair by pair."""
    batch, dim = x.shape[0], x.shape[-1]
    out = x.clone()
    if norm is not None:
        flat = x.flatten(2) if norm == "across_heads" else x
        flat = flat / (flat.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        out = (flat if weight is None else flat * weight.to(x.dtype)).reshape(x.shape).clone()
    time, row, column = (p.double() for p in positions)
    time = time.expand(batch, -1) if time.ndim == 1 else time
    for b in range(batch):
        for f in range(time.shape[1]):
            for i in range(len(row)):
                for j in range(len(column)):
                    token = rotate_from + (f * len(row) + i) * len(column) + j
                    pair = 0
                    for position, channels in zip((time[b, f], row[i], column[j]), axes_dim, strict=True):
                        for n in range(channels // 2):
                            angle = float(position) * theta ** (-2 * n / channels)
                            one, two = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + dim // 2)
                            a, c = out[b, token, :, one].clone(), out[b, token, :, two].clone()
                            out[b, token, :, one] = a * math.cos(angle) - c * math.sin(angle)
                            out[b, token, :, two] = a * math.sin(angle) + c * math.cos(angle)
                            pair += 1
    return out


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            centred = x[b, s] - x[b, s].mean()
            gain, offset = ((v[b] if v.ndim == 2 else v[b, s]).to(x.dtype) for v in (scale, shift))
            out[b, s] = centred / (centred.pow(2).mean() + 1e-6).sqrt() * (1 + gain) + offset
    return out


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            out[b, s] = x[b, s] + y[b, s] * (gate[b] if gate.ndim == 2 else gate[b, s]).to(x.dtype)
    return out


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_gradient(x: Tensor, grad: Tensor) -> Tensor:
    u, slope = (math.sqrt(2 / math.pi) * v for v in (x + 0.044715 * x**3, 1 + 3 * 0.044715 * x**2))
    return grad * (0.5 * (1 + torch.tanh(u)) + 0.5 * x * slope * (1 - torch.tanh(u) ** 2))


def spread_rows(b: Tensor, heads: Tensor, head_dim: int, width: int) -> Tensor:
    """Compact rows (len(heads)*head_dim, r) in a (width, r) matrix with zeros for the other heads."""
    full = b.new_zeros(width, b.shape[1])
    for i, head in enumerate(heads.tolist()):
        full[head * head_dim : (head + 1) * head_dim] = b[i * head_dim : (i + 1) * head_dim]
    return full


def lora_out(x, weight, bias, a, b, heads, head_dim, scale) -> Tensor:
    """A linear layer whose weight has the update merged into it."""
    full_b = spread_rows(b, heads, head_dim, weight.shape[0])
    y = x @ (weight + scale * full_b.to(x.dtype) @ a.to(x.dtype)).T
    return y if bias is None else y + bias


def lora_in(x, weight, bias, a, b, heads, head_dim, scale) -> Tensor:
    full_a = spread_rows(a.T, heads, head_dim, weight.shape[1]).T
    y = x @ (weight + scale * b.to(x.dtype) @ full_a.to(x.dtype)).T
    return y if bias is None else y + bias


def bands(grid: tuple[int, int, int], band: float) -> tuple[Tensor, Tensor]:
    """The dense S x S masks of the two bands."""
    frames, height, width = grid
    locations = height * width
    size = frames * locations
    spatial, temporal = torch.zeros(size, size), torch.zeros(size, size)
    order = [(i % locations) * frames + i // locations for i in range(size)]
    for i in range(size):
        for j in range(size):
            spatial[i, j] = abs(i - j) < band * locations
            temporal[i, j] = abs(order[i] - order[j]) < band * locations
    return spatial, temporal


def scores(query: Tensor, key: Tensor, grid, band: float, rows: Tensor | None) -> tuple[Tensor, ...]:
    spatial, temporal = (mask.to(query.dtype) for mask in bands(grid, band))
    logits = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(query.shape[-1])
    maps = logits.softmax(-1)
    if rows is not None:
        maps, spatial, temporal = maps[:, :, rows], spatial[rows], temporal[rows]
    return tuple(m.sum(-1).mean(-1) for m in (maps * spatial, maps * temporal, maps * maps))


def attention_mask(kind: int, grid, frame_window: int, location_window: int, sink: bool) -> Tensor:
    frames, height, width = grid
    where = [(f, i, j) for f in range(frames) for i in range(height) for j in range(width)]
    mask = torch.zeros(len(where), len(where), dtype=torch.bool)
    for q, (f, i, j) in enumerate(where):
        for k, (g, m, n) in enumerate(where):
            near_frame = abs(f - g) <= frame_window
            near_place = max(abs(i - m), abs(j - n)) <= location_window or (sink and g == 0)
            mask[q, k] = (True, near_frame, near_place)[kind]
    return mask


def attention(query, key, value, kinds, grid, frame_window=0, location_window=0, sink=False) -> Tensor:
    logits = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(query.shape[-1])
    for head, kind in enumerate(kinds.tolist()):
        mask = attention_mask(kind, grid, frame_window, location_window, sink)
        logits[:, head].masked_fill_(~mask, float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), value)


def motion(pred: Tensor, target: Tensor, weight: Tensor | None, motion_weight: float) -> Tensor:
    batch, _, frames, _, _ = pred.shape
    squares = [(pred[b] - target[b]).pow(2).mean() for b in range(batch)]
    total = sum(s * (1 if weight is None else weight[b]) for b, s in enumerate(squares)) / batch
    gaps = []
    for b in range(batch):
        for t in range(frames - 1):
            step_p = (pred[b, :, t + 1] - pred[b, :, t]).flatten()
            step_t = (target[b, :, t + 1] - target[b, :, t]).flatten()
            gaps.append(1 - (step_p @ step_t) / (step_p.norm() * step_t.norm()))
    return total + motion_weight * sum(gaps) / len(gaps) if gaps else total
