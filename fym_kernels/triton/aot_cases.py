"""The calls that the ahead-of-time check compiles: every launcher, at the shapes of the video models.

Tensors are on the meta device, so a 14B layer costs nothing. Each case runs an op forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fym_kernels.triton import (
    gated_residual,
    gelu,
    head_attention,
    head_scores,
    lora_linear,
    lora_qkv,
    modulated_norm,
    motion_loss,
    qk_norm_rope,
)


class Model(NamedTuple):
    """What a kernel sees of a video model: heads, head dim, token grid, rotary channels, norm."""

    heads: int
    head_dim: int
    grid: tuple[int, int, int]
    axes_dim: tuple[int, int, int]
    norm: str = "across_heads"
    interleaved: bool = True

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


MODELS = {
    "wan-1.3b": Model(12, 128, (21, 30, 52), (44, 42, 42)),  # 81 frames of 480 x 832
    "wan-14b": Model(40, 128, (21, 45, 80), (44, 42, 42)),  # 81 frames of 720 x 1280
    "heads-24": Model(24, 128, (33, 30, 40), (16, 56, 56), norm="per_head"),
    "head-dim-64": Model(48, 64, (13, 30, 45), (16, 24, 24), norm="per_head", interleaved=False),
}


DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # that the kernels take on a device


class Case(NamedTuple):
    op: str
    model: str
    dtype: torch.dtype
    run: Callable[[], None]

    @property
    def label(self) -> str:
        return f"{self.op} {self.model} {str(self.dtype).removeprefix('torch.')}"


def cases(
    models: tuple[str, ...] = tuple(MODELS), dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
) -> list[Case]:
    """Every op at every model and dtype, forward and backward."""
    return [
        Case(op, name, dtype, lambda r=runner, m=MODELS[name], t=dtype: r(m, t))
        for name in models
        for dtype in dtypes
        for op, runner in RUNNERS.items()
    ]


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _tokens(model: Model, dtype: torch.dtype) -> Tensor:
    return _empty(1, model.tokens, model.width, dtype=dtype)


def _heads(model: Model, dtype: torch.dtype) -> Tensor:
    return _empty(1, model.tokens, model.heads, model.head_dim, dtype=dtype)


def _gated_residual(model: Model, dtype: torch.dtype) -> None:
    x, gate = _tokens(model, dtype), _empty(1, model.width, dtype=torch.float32)
    gated_residual.forward(x, x, gate)
    gated_residual.backward(x, x, gate, True, True)


def _gelu(model: Model, dtype: torch.dtype) -> None:
    x = _empty(1, model.tokens, 4 * model.width, dtype=dtype)
    gelu.forward(x)
    gelu.backward(x, x)


def _modulated_norm(model: Model, dtype: torch.dtype) -> None:
    x, scale = _tokens(model, dtype), _empty(1, model.width, dtype=torch.float32)
    _, mean, rstd = modulated_norm.forward(x, scale, scale, 1e-6)
    modulated_norm.backward(x, x, scale, mean, rstd, False, True, True, True)


def _qk_norm_rope(model: Model, dtype: torch.dtype) -> None:
    # slices of one fused projection: the token stride is three widths
    fused = _empty(1, model.tokens, 3, model.heads, model.head_dim, dtype=dtype)
    query, key = fused[:, :, 0], fused[:, :, 1]
    grad = _heads(model, dtype)
    size = model.width if model.norm == "across_heads" else model.head_dim
    weight = _empty(size, dtype=torch.float32)
    entries = sum(n * (dim // 2) for n, dim in zip(model.grid, model.axes_dim, strict=True))
    table = _empty(2, entries, dtype=torch.float32)
    place = (table, model.grid, model.axes_dim, False)
    *_, query_rstd, key_rstd = qk_norm_rope.forward(
        query, key, weight, weight, *place, 1e-6, model.norm, 0, model.interleaved
    )
    saved = (query, key, weight, weight, query_rstd, key_rstd)
    qk_norm_rope.backward(grad, grad, *saved, *place, model.norm, 0, model.interleaved, True, True)


def _motion_loss(model: Model, dtype: torch.dtype) -> None:
    frames, rows, columns = model.grid
    pred = _empty(1, 16, frames, 2 * rows, 2 * columns, dtype=dtype)
    loss, *saved = motion_loss.forward(pred, pred, None, 1.0)
    motion_loss.backward(loss, pred, pred, *saved, "pred")


def _active(model: Model) -> Tensor:
    return torch.empty(model.heads // 2, dtype=torch.int64, device="meta")


def _lora_qkv(model: Model, dtype: torch.dtype) -> None:
    x, weight = _tokens(model, dtype), _empty(model.width, model.width, dtype=dtype)
    heads = _active(model)
    for rank in (16, 128):
        a = _empty(rank, model.width, dtype=torch.float32)
        b = _empty(heads.numel() * model.head_dim, rank, dtype=torch.float32)
        layers = ((weight,) * 3, (a,) * 3, (b,) * 3, heads)
        *outs, s = lora_qkv.forward(
            x, *layers[0], None, None, None, *layers[1], *layers[2], heads, model.head_dim, 1.0
        )
        lora_qkv.backward(outs, x, *layers, s, model.head_dim, 1.0, True, True)


def _lora_linear(model: Model, dtype: torch.dtype) -> None:
    x, weight = _tokens(model, dtype), _empty(model.width, model.width, dtype=dtype)
    heads, rank = _active(model), 16
    a = _empty(rank, heads.numel() * model.head_dim, dtype=torch.float32)
    b = _empty(model.width, rank, dtype=torch.float32)
    options = (model.head_dim, 1.0, "in")
    out, s = lora_linear.forward(x, weight, None, a, b, heads, *options)
    lora_linear.backward(out, x, weight, a, b, heads, s, *options, True, True)


def _head_scores(model: Model, dtype: torch.dtype) -> None:
    query = _heads(model, dtype)
    head_scores.forward(query, query, model.grid, 1.0, None)


def _head_attention(model: Model, dtype: torch.dtype) -> None:
    query = _heads(model, dtype)
    kind = torch.empty(model.heads, dtype=torch.int8, device="meta")
    for windows in ((0, 0, False), (2, 2, True), (1, 1, True)):  # the compiler makes constants of ones
        options = (kind, model.grid, *windows, model.head_dim**-0.5)
        out, lse = head_attention.forward(query, query, query, *options)
        head_attention.backward(query, query, query, query, out, lse, *options)


RUNNERS: dict[str, Callable[[Model, torch.dtype], None]] = {
    "gated_residual": _gated_residual,
    "gelu": _gelu,
    "modulated_norm": _modulated_norm,
    "qk_norm_rope": _qk_norm_rope,
    "motion_loss": _motion_loss,
    "lora_qkv": _lora_qkv,
    "lora_linear": _lora_linear,
    "head_scores": _head_scores,
    "head_attention": _head_attention,
}
