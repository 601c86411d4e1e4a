"""Random inputs of every op, and the cases all native kernels are held against the reference on.

One list for all backends: the Triton interpreter, and real devices in tests/gpu. A maker gives the arguments
of the public function, seeded, so that a case is the same everywhere; tensors that get a gradient require it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """Positional arguments and options of a public function of fym_kernels."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Random:
    """Normal numbers, the same in every dtype up to rounding."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def fixed(self, *shape: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
        return (size * torch.randn(shape, dtype=torch.float64, generator=self.generator)).to(dtype)

    def leaf(self, *shape: int, dtype: torch.dtype, size: float = 1.0, offset: float = 0.0) -> Tensor:
        return (self.fixed(*shape, dtype=torch.float64, size=size) + offset).to(dtype).requires_grad_()


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Weights, gates and factors stay float32 beside 16-bit activations."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def qk_norm_rope(
    dtype: torch.dtype,
    *,
    grid: tuple[int, int, int],
    heads: int,
    axes_dim: tuple[int, int, int] = (4, 2, 2),
    batch: int = 1,
    norm: str | None = "across_heads",
    weighted: bool = True,
    interleaved: bool = True,
    text: tuple[int, int] = (0, 0),
    time_per_sample: bool = False,
    farthest: float = 100.0,
    seed: int = 0,
) -> Inputs:
    """text: tokens before and after the video's. Positions are uneven, of both signs, up to `farthest`."""
    random, dim = _Random(seed), sum(axes_dim)
    tokens = text[0] + grid[0] * grid[1] * grid[2] + text[1]
    query, key = (random.leaf(batch, tokens, heads, dim, dtype=dtype) for _ in range(2))
    size = heads * dim if norm == "across_heads" else dim
    weights = [
        random.leaf(size, dtype=parameter_dtype(dtype), offset=1.5) if weighted and norm else None
        for _ in range(2)
    ]
    shape = (batch, grid[0]) if time_per_sample else (grid[0],)
    time = (2 * torch.rand(shape, dtype=torch.float64, generator=random.generator) - 1) * farthest
    positions = (time, torch.arange(grid[1]), torch.linspace(-3, 5, grid[2], dtype=torch.float32))
    options = {"axes_dim": axes_dim, "norm": norm, "rotate_from": text[0], "interleaved": interleaved}
    return Inputs((query, key, *weights, positions), options)


def modulated_norm(
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int],
    scale_per_token: bool = False,
    shift_per_token: bool = False,
    seed: int = 0,
) -> Inputs:
    random, narrow = _Random(seed), (shape[0], shape[2])
    x = random.leaf(*shape, dtype=dtype, size=3, offset=2)
    scale = random.leaf(*(shape if scale_per_token else narrow), dtype=parameter_dtype(dtype))
    shift = random.leaf(*(shape if shift_per_token else narrow), dtype=parameter_dtype(dtype))
    return Inputs((x, scale, shift), {})


def gated_residual(
    dtype: torch.dtype, *, shape: tuple[int, int, int], per_token: bool = False, seed: int = 0
) -> Inputs:
    random = _Random(seed)
    x, y = (random.leaf(*shape, dtype=dtype) for _ in range(2))
    gate_shape = shape if per_token else (shape[0], shape[2])
    return Inputs((x, y, random.leaf(*gate_shape, dtype=parameter_dtype(dtype))), {})


def gelu(dtype: torch.dtype, *, shape: tuple[int, ...], size: float = 3.0, seed: int = 0) -> Inputs:
    return Inputs((_Random(seed).leaf(*shape, dtype=dtype, size=size),), {})


def motion_loss(
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int, int, int],
    weighted: bool = False,
    motion_weight: float = 1.0,
    seed: int = 0,
) -> Inputs:
    random = _Random(seed)
    pred, target = (random.leaf(*shape, dtype=dtype) for _ in range(2))
    weight = random.fixed(shape[0], dtype=parameter_dtype(dtype)).abs() if weighted else None
    return Inputs((pred, target, weight), {"motion_weight": motion_weight})


def lora_qkv(
    dtype: torch.dtype,
    *,
    heads: int,
    head_dim: int,
    active: tuple[int, ...],
    rank: int,
    batch: int = 1,
    tokens: int = 9,
    d_in: int = 40,
    bias: bool = True,
    seed: int = 0,
) -> Inputs:
    random, d_out = _Random(seed), heads * head_dim
    x = random.leaf(batch, tokens, d_in, dtype=dtype)
    weights = tuple(random.fixed(d_out, d_in, dtype=dtype, size=d_in**-0.5) for _ in range(3))
    biases = tuple(random.fixed(d_out, dtype=dtype) if bias else None for _ in range(3))
    wide = parameter_dtype(dtype)
    a = tuple(random.leaf(rank, d_in, dtype=wide, size=d_in**-0.5) for _ in range(3))
    b = tuple(random.leaf(len(active) * head_dim, rank, dtype=wide) for _ in range(3))
    # the scale is exact in float32, the type of a kernel's scalar argument
    options = {"head_dim": head_dim, "scale": 0.5}
    return Inputs((x, weights, biases, a, b, torch.tensor(active, dtype=torch.int64)), options)


def lora_linear(
    dtype: torch.dtype,
    *,
    heads: int,
    head_dim: int,
    active: tuple[int, ...] | None,
    rank: int,
    side: str,
    batch: int = 1,
    tokens: int = 9,
    other: int = 24,
    bias: bool = True,
    seed: int = 0,
) -> Inputs:
    """The heads are the output's for side="out", the input's for side="in"; `other` is the other width."""
    random, width = _Random(seed), heads * head_dim
    used = width if active is None else len(active) * head_dim
    d_in, d_out = (width, other) if side == "in" else (other, width)
    a_in, b_out = (used, other) if side == "in" else (other, used)
    x = random.leaf(batch, tokens, d_in, dtype=dtype)
    weight = random.fixed(d_out, d_in, dtype=dtype, size=d_in**-0.5)
    a = random.leaf(rank, a_in, dtype=parameter_dtype(dtype), size=d_in**-0.5)
    b = random.leaf(b_out, rank, dtype=parameter_dtype(dtype))
    options = {
        "scale": 0.5,
        "active_heads": None if active is None else torch.tensor(active, dtype=torch.int64),
        "head_dim": None if active is None else head_dim,
        "side": side,
    }
    return Inputs((x, weight, random.fixed(d_out, dtype=dtype) if bias else None, a, b), options)


def head_attention(
    dtype: torch.dtype,
    *,
    kinds: tuple[int, ...],
    grid: tuple[int, int, int],
    dim: int,
    batch: int = 1,
    seed: int = 0,
    **options: Any,
) -> Inputs:
    random, tokens = _Random(seed), grid[0] * grid[1] * grid[2]
    query, key, value = (random.leaf(batch, tokens, len(kinds), dim, dtype=dtype) for _ in range(3))
    return Inputs((query, key, value, torch.tensor(kinds, dtype=torch.int8), grid), options)


def head_scores(
    dtype: torch.dtype,
    *,
    grid: tuple[int, int, int],
    heads: int,
    dim: int,
    band: float = 1.0,
    rows: tuple[int, ...] | None = None,
    batch: int = 1,
    seed: int = 0,
) -> Inputs:
    random, tokens = _Random(seed), grid[0] * grid[1] * grid[2]
    query, key = (random.fixed(batch, tokens, heads, dim, dtype=dtype, size=2) for _ in range(2))
    return Inputs((query, key, grid), {"band": band, "rows": None if rows is None else torch.tensor(rows)})


MAKERS: dict[str, Callable[..., Inputs]] = {
    "qk_norm_rope": qk_norm_rope,
    "modulated_norm": modulated_norm,
    "gated_residual": gated_residual,
    "gelu": gelu,
    "motion_loss": motion_loss,
    "lora_qkv": lora_qkv,
    "lora_linear": lora_linear,
    "head_attention": head_attention,
    "head_scores": head_scores,
}


@dataclass(frozen=True)
class Case:
    """One maker with its options."""

    op: str
    name: str
    values: dict[str, Any]

    def inputs(self, dtype: torch.dtype) -> Inputs:
        return MAKERS[self.op](dtype, **self.values)

    def __str__(self) -> str:
        return self.name


# the first case of an op runs in every dtype
_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "qk_norm_rope": {
        "wan-14b": {"grid": (2, 1, 1), "heads": 40, "axes_dim": (44, 42, 42), "farthest": 1e5},
        "wan-1.3b": {"grid": (1, 1, 1), "heads": 12, "axes_dim": (44, 42, 42), "text": (0, 1)},
        "odd": {"grid": (2, 1, 2), "heads": 3, "batch": 2, "text": (1, 1), "time_per_sample": True},
        "per head": {"grid": (2, 1, 2), "heads": 3, "batch": 2, "norm": "per_head", "time_per_sample": True},
        "halves": {"grid": (1, 2, 2), "heads": 5, "axes_dim": (4, 4, 4), "interleaved": False},
        "per-head halves": {"grid": (1, 2, 1), "heads": 5, "norm": "per_head", "interleaved": False},
        "no norm": {"grid": (2, 2, 1), "heads": 3, "norm": None},
        "no weight": {"grid": (2, 2, 1), "heads": 3, "weighted": False},
        "no row channels": {"grid": (3, 1, 2), "heads": 2, "axes_dim": (8, 0, 8)},
    },
    "modulated_norm": {
        "wan-1.3b": {"shape": (1, 3, 1536)},
        "odd": {"shape": (2, 5, 37)},
        "per token": {"shape": (1, 3, 24), "scale_per_token": True, "shift_per_token": True},
        "shift per token": {"shape": (2, 5, 12), "shift_per_token": True},
    },
    "gated_residual": {
        "per sample": {"shape": (2, 13, 24)},
        "per token": {"shape": (1, 5, 37), "per_token": True},
        "many tokens": {"shape": (1, 40, 8)},
        "one": {"shape": (1, 1, 1)},
    },
    "gelu": {
        "tokens": {"shape": (2, 13, 24)},
        "several blocks": {"shape": (5, 999)},
        "far from zero": {"shape": (700,), "size": 30.0},
        "one": {"shape": ()},
    },
    "motion_loss": {
        "weighted": {"shape": (2, 2, 5, 3, 7), "weighted": True, "motion_weight": 0.7},
        "one frame": {"shape": (1, 2, 1, 3, 8)},
        "many frames": {"shape": (1, 1, 18, 1, 3), "motion_weight": 2.0},
        "one pixel": {"shape": (2, 2, 2, 1, 1), "weighted": True, "motion_weight": 0.0},
    },
    "lora_qkv": {
        "some": {"heads": 3, "head_dim": 12, "active": (0, 2), "rank": 5, "batch": 2},
        "one": {"heads": 5, "head_dim": 16, "active": (3,), "rank": 16},
        "none": {"heads": 2, "head_dim": 8, "active": (), "rank": 4},
        "all": {"heads": 2, "head_dim": 20, "active": (0, 1), "rank": 1, "bias": False},
    },
    "lora_linear": {
        "in": {"heads": 3, "head_dim": 12, "active": (0, 2), "rank": 6, "side": "in", "batch": 2},
        "out": {"heads": 3, "head_dim": 12, "active": (0, 2), "rank": 6, "side": "out"},
        "everything": {"heads": 3, "head_dim": 12, "active": None, "rank": 6, "side": "out"},
        "one": {"heads": 5, "head_dim": 16, "active": (3,), "rank": 17, "side": "in", "bias": False},
        "none": {"heads": 2, "head_dim": 8, "active": (), "rank": 4, "side": "in"},
    },
    "head_attention": {
        "all kinds": {"kinds": (0, 1, 2), "grid": (3, 2, 3), "dim": 12},
        "windows": {
            "kinds": (1, 2), "grid": (3, 3, 2), "dim": 16, "batch": 2,
            "frame_window": 1, "location_window": 1, "scale": 0.3,
        },
        "sink": {"kinds": (2, 0), "grid": (2, 3, 3), "dim": 8, "first_frame_sink": True},
        "sink and window": {
            "kinds": (2,), "grid": (2, 4, 3), "dim": 20, "first_frame_sink": True, "location_window": 2,
        },
        "one frame": {"kinds": (2, 1), "grid": (1, 3, 5), "dim": 16, "location_window": 1},
        "one place": {"kinds": (1, 2, 0), "grid": (17, 1, 1), "dim": 16, "frame_window": 20},
    },
    "head_scores": {
        "odd": {"grid": (3, 2, 3), "heads": 1, "dim": 12, "batch": 2},
        "narrow": {"grid": (1, 3, 3), "heads": 3, "dim": 16, "band": 0.4},
        "sampled": {"grid": (5, 1, 1), "heads": 1, "dim": 8, "band": 2.5, "rows": (4, 0, 2, 1)},
        "wide": {"grid": (4, 3, 2), "heads": 1, "dim": 20, "band": 1.3, "rows": (23, 0, 12, 1)},
    },
}  # fmt: skip
CASES = [Case(op, name, values) for op, named in _CASES.items() for name, values in named.items()]


def of(op: str) -> Iterator[Case]:
    """The cases of one op."""
    return (case for case in CASES if case.op == op)
