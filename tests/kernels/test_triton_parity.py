"""Every op on Triton, from the public function down: the reference's values and gradients in every case."""

from __future__ import annotations

import cases
import parity
import pytest
import torch
from interpreter import DTYPES, FACTORS, interpreted, poisoned_memory  # noqa: F401

pytestmark = interpreted()

from fym_kernels import backend, use_backend  # noqa: E402


def in_each_dtype() -> list[object]:
    """Every case in float64, which shows the arithmetic, and an op's first also in the narrow types, which
    shows casts and accumulation: the interpreter takes milliseconds per program.
    """
    first = [next(cases.of(op)) for op in backend.OPS]
    pairs = [(case, dtype) for case in cases.CASES for dtype in (DTYPES if case in first else DTYPES[:1])]
    return [pytest.param(*p, id=f"{p[0].op}-{p[0]}-{str(p[1]).removeprefix('torch.')}") for p in pairs]


@pytest.mark.parametrize(("case", "dtype"), in_each_dtype())
def test_values_and_gradients(case: cases.Case, dtype: torch.dtype) -> None:
    parity.assert_parity(case, dtype, "triton", factor=FACTORS.get(case.op, 1.5))


def test_every_op_is_there_and_the_cpu_still_takes_its_own_kernels() -> None:
    assert {row.backend for row in backend.explain("cuda")} <= {"cuda", "triton"}
    assert "triton" not in {row.backend for row in backend.explain("cpu")}  # interpreting is for tests
    with use_backend("triton"):
        assert {row.backend for row in backend.explain("cpu")} == {"triton"}
