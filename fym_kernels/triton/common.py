# mypy: disable-error-code="no-untyped-def"
"""What the kernel files share: launching, tile sizes, and sums of partial results in a fixed order.

Every kernel starts through `launch`. That is what lets the ahead-of-time check see exactly the calls the
launchers make: inside `recording()` they are noted and not run, so meta tensors will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)  # fixed for the process: it decides how kernels are decorated
# tl.dot of float32 operands: three TF32 products recover float32's 24 bits; ignored for other dtypes
DOT_PRECISION = tl.constexpr("tf32x3")
LANES = 32

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]


@dataclass
class Call:
    """One launch as a launcher asked for it."""

    kernel: Any
    grid: Grid
    args: tuple[Any, ...]
    constants: dict[str, Any]
    configs: tuple[triton.Config, ...]


@dataclass
class _State:
    calls: list[Call] | None = None
    architecture: int = 0  # recorded for; 0 outside a recording
    tuned: dict[tuple[Any, ...], Any] = field(default_factory=dict)


_state = _State()


@contextmanager
def recording(architecture: int) -> Iterator[list[Call]]:
    """Launches inside the block are noted, as made for sm_<architecture>, and not run."""
    before = _state.calls, _state.architecture
    _state.calls, _state.architecture = [], architecture
    try:
        yield _state.calls
    finally:
        _state.calls, _state.architecture = before


def for_device(configs: Mapping[int, tuple[triton.Config, ...]], like: Tensor) -> tuple[triton.Config, ...]:
    """The configurations of the newest architecture that the device of `like` is not older than."""
    if _state.architecture:
        architecture = _state.architecture
    else:
        major, minor = torch.cuda.get_device_capability(like.device)
        architecture = 10 * major + minor
    return configs[max((a for a in configs if a <= architecture), default=min(configs))]


def launch(
    kernel: Any,
    grid: Grid,
    *args: Any,
    configs: Sequence[triton.Config],
    key: Sequence[str] = (),
    **constants,
) -> None:
    """Run `kernel` over `grid`. Several configs: the fastest one for each value of the `key` arguments.

    The interpreter takes the first config. grid: sizes, or a function of the constants and the config.
    """
    if _state.calls is not None:
        _state.calls.append(Call(kernel, grid, args, constants, tuple(configs)))
        return
    if INTERPRETED or len(configs) == 1:
        run, options = kernel, configs[0].all_kwargs()
    else:
        name = (kernel, tuple(key), *map(str, configs))
        if name not in _state.tuned:
            _state.tuned[name] = triton.autotune(list(configs), list(key))(kernel)
        run, options = _state.tuned[name], {}
    first = next(arg for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device_of(first):
        run[grid](*args, **constants, **options)


def config(
    num_warps: int, num_stages: int = 2, *, most_registers: int | None = None, **blocks: int
) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages, maxnreg=most_registers)


def accumulation(dtype: torch.dtype) -> tl.dtype:
    """Sums are float32, and float64 for float64 tensors (the interpreter's gradient checks)."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def accumulation_torch(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, and 1 for n < 1."""
    return 1 << max(0, n - 1).bit_length()


def dense_last(x: Tensor) -> Tensor:
    """`x` itself when its last dimension is dense, else a contiguous copy: kernels load along it."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def chunks_of(width: int, largest: int = 1024) -> tuple[int, int]:
    """(count, size) of equal power-of-two chunks covering `width`, without padding if few chunks do.

    The model widths 1536 = 3*512, 3072 = 3*1024 and 5120 = 5*1024 divide exactly: no lane idles.
    """
    size = min(width & -width, largest)
    if width and width // size <= 8:
        return width // size, size
    size = min(power_of_two(width), 8 * largest)
    return ceil_div(width, size), size


def warps_for(elements: int, itemsize: int) -> int:
    """Warps so that each thread moves 16 bytes of a tile of `elements` at a time, from 1 to 8."""
    return min(8, max(1, elements * itemsize // (16 * LANES)))


def tile_of(width: int, itemsize: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of the tile of an elementwise kernel over (tokens, width)."""
    columns = min(chunks_of(width)[1], 1024) if width % 128 == 0 else min(power_of_two(width), 1024)
    rows = 8 if INTERPRETED else max(1, 4096 // columns)
    return rows, columns, min(8, max(1, rows * columns * itemsize // (64 * LANES)))


def token_splits(tokens: int, rows: int, most: int = 256) -> tuple[int, int]:
    """(splits, tokens per split) of a sum over tokens. Depends on the shape alone: same bits everywhere."""
    per_split = ceil_div(max(1, ceil_div(tokens, most)), rows) * rows
    return max(1, ceil_div(tokens, per_split)), per_split


@triton.jit
def _sum_partials_kernel(
    partials, out, parts, width, part_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr
):
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], ACC)
    for start in range(0, parts, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < parts) & (column[None, :] < width)
        offset = (batch * parts + row[:, None]) * part_stride + column[None, :]
        total += tl.sum(tl.load(partials + offset, mask=inside, other=0), 0)
    tl.store(out + batch * width + column, total.to(out.dtype.element_ty), mask=column < width)


def sum_partials(partials_BNw: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over dimension 1 of (B,N,w), always in the same order; (B,w) of `dtype`."""
    assert partials_BNw.ndim == 3 and partials_BNw.is_contiguous()
    batch, parts, width = partials_BNw.shape
    out = torch.empty(batch, width, dtype=dtype, device=partials_BNw.device)
    if out.numel() == 0:
        return out
    columns = min(power_of_two(width), 128)
    launch(
        _sum_partials_kernel,
        (ceil_div(width, columns), batch),
        partials_BNw,
        out,
        parts,
        width,
        width,
        configs=(config(4, ROWS=32),),
        COLUMNS=columns,
        ACC=accumulation(partials_BNw.dtype),
    )
    return out
