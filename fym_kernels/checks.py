"""Checks shared by every op: a wrong argument raises a ValueError naming it, what came, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float64 for float64 storage, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def floating(name: str, value: Tensor, like: Tensor | None = None) -> None:
    """`value` must be a floating tensor, on the device of `like` when that is given."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, bfloat16, float16 or float64, got {show(value.dtype)}")
    if like is not None:
        same_device(name, value, like)


def same_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, but the first argument is on {like.device}")


def same_dtype(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.dtype != like.dtype:
        raise ValueError(
            f"{name} must have the dtype of {like_name} ({show(like.dtype)}), got {show(value.dtype)}"
        )


def shape(name: str, value: Tensor, *allowed: tuple[int, ...]) -> None:
    """`value` must have one of the `allowed` shapes."""
    # size by size: torch.compile cannot compare whole tuples when some sizes are symbolic
    if not any(_same(value.shape, sizes) for sizes in allowed):
        wanted = " or ".join(str(s) for s in allowed)
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")


def _same(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def rank(name: str, value: Tensor, letters: str) -> None:
    """`value` must have as many dimensions as `letters`, e.g. "BSd"."""
    if value.ndim != len(letters):
        named = "(" + ", ".join(letters) + ")"
        raise ValueError(
            f"{name} must have {len(letters)} dimensions {named}, got shape {tuple(value.shape)}"
        )


def grid_of(name: str, grid: tuple[int, int, int], tokens: int) -> tuple[int, int, int]:
    """`grid` must be three counts (frames, height, width) whose product is `tokens`."""
    sizes = tuple(int(n) for n in grid)
    if len(sizes) != 3 or min(sizes) < 0:
        raise ValueError(f"{name} must be (frames, height, width), got {grid}")
    if sizes[0] * sizes[1] * sizes[2] != tokens:
        raise ValueError(
            f"{name} {sizes} holds {sizes[0] * sizes[1] * sizes[2]} tokens, but query has {tokens}"
        )
    return sizes[0], sizes[1], sizes[2]


def show(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
