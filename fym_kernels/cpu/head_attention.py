"""head_attention on the CPU: torch's flash attention for full and spatial heads, C++ for temporal ones.

A frame of a spatial head is a sequence of its own; a location of a temporal head is one of F' tokens, which
csrc/cpu/temporal_attention.cpp gathers itself. A window that reaches everywhere is full attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fym_kernels.checks import accumulation_dtype
from fym_kernels.reference.head_attention import FULL, SPATIAL, TEMPORAL

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Plan:
    """Which heads are of which kind, and what they may see."""

    heads: dict[int, list[int]]
    grid: tuple[int, int, int]
    frame_window: int
    location_window: int
    sink: bool
    scale: float

    def attended(self) -> Iterator[tuple[list[int], slice, slice, int]]:
        """(heads, their query tokens, the keys these see, frames that are sequences of their own)."""
        frames, height, width = self.grid
        locations = height * width
        everything = slice(0, frames * locations)
        if self.heads[FULL]:
            yield self.heads[FULL], everything, everything, 1
        if self.heads[SPATIAL] and self.frame_window == 0:
            yield self.heads[SPATIAL], everything, everything, frames
        elif self.heads[SPATIAL]:
            for f in range(frames):
                low, high = max(0, f - self.frame_window), min(frames, f + self.frame_window + 1)
                own = slice(f * locations, (f + 1) * locations)
                yield self.heads[SPATIAL], own, slice(low * locations, high * locations), 1


def _plan(
    head_kind: Tensor,
    grid: list[int],
    frame_window: int,
    location_window: int,
    sink: bool,
    scale: float,
) -> _Plan:
    kinds = head_kind.tolist()
    wrong = sorted({kind for kind in kinds if kind not in (FULL, SPATIAL, TEMPORAL)})
    if wrong:
        raise ValueError(f"head_kind must hold 0 (full), 1 (spatial) or 2 (temporal), got {wrong}")
    frames, height, width = grid
    everywhere = {FULL}
    if frame_window >= frames - 1:
        everywhere.add(SPATIAL)
    if location_window >= max(height, width) - 1:
        everywhere.add(TEMPORAL)
    kinds = [FULL if kind in everywhere else kind for kind in kinds]
    heads = {kind: [h for h, k in enumerate(kinds) if k == kind] for kind in (FULL, SPATIAL, TEMPORAL)}
    return _Plan(heads, (frames, height, width), frame_window, location_window, sink, scale)


def _take(x_BSHD: Tensor, heads: list[int], tokens: slice, sequences: int) -> Tensor:
    """Heads and tokens of x, cut into sequences: (B*sequences, heads, tokens, D)."""
    part = x_BSHD[:, tokens]
    if len(heads) == heads[-1] - heads[0] + 1:
        part = part[:, :, heads[0] : heads[-1] + 1]
    else:
        part = part.index_select(2, torch.tensor(heads))
    return part.unflatten(1, (sequences, -1)).flatten(0, 1).transpose(1, 2)


def _back(x: Tensor, sequences: int) -> Tensor:
    """(B*sequences, heads, tokens, ...) -> (B, sequences*tokens, heads, ...)."""
    return x.transpose(1, 2).unflatten(0, (-1, sequences)).flatten(1, 2)


def _head_attention(  # type: ignore[no-untyped-def]
    query, key, value, head_kind, grid, frame_window, location_window, first_frame_sink, scale
):
    plan = _plan(head_kind, grid, frame_window, location_window, first_frame_sink, scale)
    batch, tokens, heads, _ = query.shape
    out = query.new_empty(query.shape)
    logsumexp = query.new_empty((batch, heads, tokens), dtype=accumulation_dtype(query.dtype))
    if out.numel() == 0:
        return out, logsumexp
    lse_BSH = logsumexp.transpose(1, 2)
    for group, own, seen, sequences in plan.attended():
        q = _take(query, group, own, sequences)
        k, v = (_take(x, group, seen, sequences) for x in (key, value))
        part, lse = _flash(q, k, v, 0.0, False, scale=scale)
        index = torch.tensor(group)
        out[:, own].index_copy_(2, index, _back(part, sequences))
        lse_BSH[:, own].index_copy_(2, index, _back(lse, sequences))
    if plan.heads[TEMPORAL]:
        torch.ops.fym_kernels.temporal_attention_(
            *(out, logsumexp, query, key, value, plan.heads[TEMPORAL], grid),
            *(location_window, first_frame_sink, scale),
        )
    return out, logsumexp


def _head_attention_backward(  # type: ignore[no-untyped-def]
    grad,
    query,
    key,
    value,
    out,
    logsumexp,
    head_kind,
    grid,
    frame_window,
    location_window,
    first_frame_sink,
    scale,
):
    plan = _plan(head_kind, grid, frame_window, location_window, first_frame_sink, scale)
    grads = [query.new_empty(query.shape) for _ in range(3)]
    if query.numel() == 0:
        return tuple(grads)
    lse_BSH = logsumexp.transpose(1, 2)
    overlapping = plan.heads[SPATIAL] and frame_window > 0
    if overlapping:  # keys are seen from several frames: summed in float32
        shape = (*query.shape[:2], len(plan.heads[SPATIAL]), query.shape[3])
        sums = [query.new_zeros(shape, dtype=accumulation_dtype(query.dtype)) for _ in range(2)]
    for group, own, seen, sequences in plan.attended():
        q, g, o = (_take(x, group, own, sequences) for x in (query, grad, out))
        k, v = (_take(x, group, seen, sequences) for x in (key, value))
        lse = _take(lse_BSH.unsqueeze(3), group, own, sequences).squeeze(3)
        parts = _flash_backward(g, q, k, v, o, lse, 0.0, False, scale=scale)
        parts = [_back(part, sequences) for part in parts]
        index = torch.tensor(group)
        grads[0][:, own].index_copy_(2, index, parts[0])
        if overlapping and group == plan.heads[SPATIAL]:
            for total, part in zip(sums, parts[1:], strict=True):
                total[:, seen].add_(part)
        else:
            for total, part in zip(grads[1:], parts[1:], strict=True):
                total.index_copy_(2, index, part)
    if overlapping:
        for total, part in zip(grads[1:], sums, strict=True):
            total.index_copy_(2, torch.tensor(plan.heads[SPATIAL]), part.to(total.dtype))
    if plan.heads[TEMPORAL]:
        torch.ops.fym_kernels.temporal_attention_backward_(
            *(*grads, grad, query, key, value, out, logsumexp, plan.heads[TEMPORAL], grid),
            *(location_window, first_frame_sink, scale),
        )
    return tuple(grads)


def _register(name: str, function: Callable[..., object]) -> None:
    torch.library.impl(f"fym_kernels::{name}", "CPU", function)


_register("head_attention", _head_attention)
_register("head_attention_backward", _head_attention_backward)
