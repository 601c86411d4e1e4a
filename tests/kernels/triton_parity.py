"""Shared by the tests of the Triton kernels: they run on the CPU, under Triton's interpreter.

TRITON_INTERPRET is read when triton is imported, so these tests need a process of their own:
test_triton_interpreter.py starts it, or set the variable for the whole run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

# bfloat16 is left out: the interpreter multiplies its bit patterns instead of its values
DTYPES = (torch.float64, torch.float32, torch.float16)


def in_each_dtype(cases: Iterable[Any]) -> list[Any]:
    """Every case in float64, which shows the arithmetic, and the first also in the narrow types, which shows
    casts and accumulation: the interpreter takes milliseconds per program.
    """
    first, *rest = cases
    pairs = [(dtype, first) for dtype in DTYPES] + [(torch.float64, case) for case in rest]
    return [pytest.param(*pair, id=f"{str(pair[0]).removeprefix('torch.')}-{pair[1]}") for pair in pairs]


def interpreted() -> pytest.MarkDecorator:
    """Skips the calling module unless triton interprets; else the marks of its tests."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1; run by test_triton_interpreter.py", allow_module_level=True)
    return pytest.mark.triton_interpret


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty comes filled with nan, so an element a kernel forgets shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def randn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The values of `x` in a view that is dense in its last dimension only, with odd gaps in the others."""
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1] + 3), torch.nan, dtype=x.dtype)
    view = wide[..., : x.shape[-2], 2 : x.shape[-1] + 2]
    view.copy_(x)
    return view


def double(*tensors: Tensor | None) -> list[Tensor | None]:
    """Detached float64 copies that want gradients: the inputs of the oracle."""
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def leaf(*tensors: Tensor | None) -> list[Tensor | None]:
    """Detached copies in the same dtype that want gradients: the inputs of the naive path."""
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def assert_as_good(
    actual: Tensor, naive: Tensor, exact: Tensor, what: str = "", *, factor: float = 1.5
) -> None:
    """`actual` is as close to the float64 `exact` as plain PyTorch in the same dtype, within `factor`.

    The second term is the rounding of a few operations in the accumulation dtype, for results that the
    naive path happens to hit exactly. In float64 it does so always, being the oracle itself: what is left is
    another order of summation, and cancellation in the gradients.
    """
    assert actual.shape == exact.shape and actual.dtype == naive.dtype, what
    exact = exact.detach().double()
    error = (actual.detach().double() - exact).norm()
    naive_error = (naive.detach().double() - exact).norm()
    wide = actual.dtype == torch.float64
    few = 500 * torch.finfo(torch.float64).eps if wide else 8 * torch.finfo(torch.float32).eps
    bound = factor * naive_error + few * exact.norm() + torch.finfo(actual.dtype).tiny
    assert error <= bound, f"{what}: error {error:.3g}, naive {naive_error:.3g}, size {exact.norm():.3g}"
