"""The cases every native kernel is held against, on real CUDA tensors, for each backend of the machine."""

from __future__ import annotations

import pytest
import torch
from against_reference import check
from cases import CASES, Case

from fym_kernels import backend as backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def native(op: str, backend: str, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    """The kernel of `backend`, or a skip that says why there is none."""
    problem = backends._problem(op, backend, "cuda", dtype)
    if problem:
        pytest.skip(problem)
    return backends._kernels[op][backend].function


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_values_and_gradients(case: Case, dtype: torch.dtype, backend: str) -> None:
    run = native(case.op, backend, dtype)
    dense = check(case.op, run, case.inputs(dtype), device="cuda")
    again = check(case.op, run, case.inputs(dtype), device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(dense, again, strict=True)), "not the same bits"
    check(case.op, run, case.inputs(dtype), view="gaps", device="cuda")
    check(case.op, run, case.inputs(dtype), view="fused", device="cuda")
