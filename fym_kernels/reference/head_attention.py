"""Attention where each head sees everything, its own frames, or its own location."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fym_kernels import checks

FULL, SPATIAL, TEMPORAL = 0, 1, 2


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_kind: Tensor,
    grid: tuple[int, int, int],
    frame_window: int,
    location_window: int,
) -> tuple[int, int, int]:
    checks.floating("query", query)
    checks.rank("query", query, "BSHD")
    for name, other in (("key", key), ("value", value)):
        checks.floating(name, other, query)
        checks.same_dtype(name, other, "query", query)
        checks.shape(name, other, tuple(query.shape))
    if not isinstance(head_kind, Tensor) or head_kind.dtype != torch.int8:
        raise ValueError("head_kind must be an int8 tensor: 0 full, 1 spatial, 2 temporal")
    checks.shape("head_kind", head_kind, (query.shape[2],))
    sizes = checks.grid_of("grid", grid, query.shape[1])
    for name, window in (("frame_window", frame_window), ("location_window", location_window)):
        if window < 0:
            raise ValueError(f"{name} must be >= 0, got {window}")
    return sizes


def head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_kind: Tensor,
    grid: tuple[int, int, int],
    *,
    frame_window: int = 0,
    location_window: int = 0,
    first_frame_sink: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(Q K^T * scale) V per head, over the keys its kind allows; (B,S,H,D) in and out.

    head_kind: (H,) int8. 0 full: all keys. 1 spatial: the frames at most frame_window away from the query's
    own. 2 temporal: every frame, at the locations at most location_window rows and columns away from the
    query's own; with first_frame_sink also the whole first frame. grid: (F',H',W'), S = F'H'W', frames
    slowest. scale: default D^-0.5. All heads full is torch's scaled_dot_product_attention itself.
    """
    sizes = check(query, key, value, head_kind, grid, frame_window, location_window)
    kinds = head_kind.tolist()
    wrong = sorted({kind for kind in kinds if kind not in (FULL, SPATIAL, TEMPORAL)})
    if wrong:
        raise ValueError(f"head_kind must hold 0 (full), 1 (spatial) or 2 (temporal), got {wrong}")
    q_BHSD, k_BHSD, v_BHSD = (x.transpose(1, 2) for x in (query, key, value))
    if all(kind == FULL for kind in kinds) or query.numel() == 0:
        return (
            F.scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, scale=scale).transpose(1, 2).contiguous()
        )

    parts, order = [], []
    for kind in (FULL, SPATIAL, TEMPORAL):
        heads = [h for h, k in enumerate(kinds) if k == kind]
        if not heads:
            continue
        index = torch.tensor(heads, device=query.device)
        q, k, v = (x.index_select(1, index) for x in (q_BHSD, k_BHSD, v_BHSD))
        if kind == FULL:
            part = F.scaled_dot_product_attention(q, k, v, scale=scale)
        elif kind == SPATIAL:
            part = _spatial(q, k, v, sizes, frame_window, scale)
        else:
            part = _temporal(q, k, v, sizes, location_window, first_frame_sink, scale)
        parts.append(part)
        order.append(index)
    back = torch.cat(order).argsort()
    return torch.cat(parts, dim=1).index_select(1, back).transpose(1, 2).contiguous()


def _spatial(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], window: int, scale: float | None
) -> Tensor:
    """(B,H,S,D): each frame against the frames at most `window` away."""
    frames = grid[0]
    q, k, v = (x.unflatten(2, (frames, -1)) for x in (q, k, v))
    if window == 0:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2, 3)
    outputs = []
    for f in range(frames):
        near = slice(max(0, f - window), f + window + 1)
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, :, f], k[:, :, near].flatten(2, 3), v[:, :, near].flatten(2, 3), scale=scale
            )
        )
    return torch.cat(outputs, dim=2)


def _temporal(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], window: int, sink: bool, scale: float | None
) -> Tensor:
    """(B,H,S,D): each location, over all frames, against the locations at most `window` away."""
    frames, height, width = grid
    locations = height * width
    if window == 0 and not sink:
        q, k, v = (x.unflatten(2, (frames, locations)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.permute(0, 2, 3, 1, 4).flatten(2, 3)
    token = torch.arange(frames * locations, device=q.device)
    row, column = token % locations // width, token % width
    outputs = []
    for location in range(locations):
        seen = (row - location // width).abs().le(window) & (column - location % width).abs().le(window)
        if sink:
            seen |= token < locations
        keys = seen.nonzero().squeeze(1)
        own = q[:, :, location::locations]
        outputs.append(
            F.scaled_dot_product_attention(own, k.index_select(2, keys), v.index_select(2, keys), scale=scale)
        )
    return torch.stack(outputs, dim=3).flatten(2, 3)
