"""The cases every native kernel is held against, on real CUDA tensors, for each backend of the machine."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from interpreter import FACTORS
from parity import assert_parity, strided

from fym_kernels import backend as backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require(op: str, backend: str, dtype: torch.dtype) -> None:
    """Skips, and says why, where `backend` has no kernel."""
    problem = backends._problem(op, backend, "cuda", dtype)
    if problem:
        pytest.skip(problem)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_values_and_gradients(case: Case, dtype: torch.dtype, backend: str) -> None:
    require(case.op, backend, dtype)
    for layout in (torch.clone, strided):
        factor = FACTORS.get(case.op, 1.5)
        assert_parity(case, dtype, backend, device="cuda", layout=layout, factor=factor)
