"""head_attention: full, per-frame and per-location attention in one call, head by head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference.head_attention import check


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


def _run(
    op: Any,
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
    sizes = check(query, key, value, head_kind, grid, frame_window, location_window)
    scale = max(1, query.shape[3]) ** -0.5 if scale is None else float(scale)
    windows = frame_window, location_window, first_frame_sink
    out: Tensor = op(query, key, value, head_kind, sizes, *windows, scale)[0]
    return out


def _fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _dim = query.shape
    return query.new_empty(query.shape), query.new_empty(
        (batch, heads, tokens), dtype=accumulation_dtype(query.dtype)
    )


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, head_kind, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, head_kind)


def _backward(op_backward: Any, ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grads = (None, None, None) if grad is None else op_backward(grad, *ctx.saved_tensors, *ctx.options)
    wanted = (g if n else None for g, n in zip(grads, ctx.needs_input_grad[:3], strict=True))
    return (*wanted, *(None,) * 6)


backends.register("head_attention", "reference", reference.head_attention)
native.describe(
    "head_attention",
    run=_run,
    fakes={"head_attention": _fake, "head_attention_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
