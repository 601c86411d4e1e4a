"""head_attention: full, per-frame and per-location attention in one call, head by head."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("head_attention", "reference", reference.head_attention)


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
    backend: str | None = None,
) -> Tensor:
    """softmax(Q K^T * scale) V; (B,S,H,D) in and out, heads grouped by kind, never an S x S mask.

    head_kind: (H,) int8, on any device. 0 full; 1 spatial: frames at most frame_window away; 2 temporal:
    all frames at locations at most location_window rows and columns away, with first_frame_sink also the
    whole first frame. grid: (F',H',W'), S = F'H'W'. scale: default D^-0.5. All heads full is exact
    attention. Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("head_attention", query, backend)
    return run(
        query,
        key,
        value,
        head_kind,
        grid,
        frame_window=frame_window,
        location_window=location_window,
        first_frame_sink=first_frame_sink,
        scale=scale,
    )
