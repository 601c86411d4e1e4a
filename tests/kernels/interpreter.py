"""Shared by the tests that run Triton kernels on the CPU, under Triton's interpreter.

TRITON_INTERPRET is read when triton and fym_kernels are imported, so these tests need a process of their own:
test_triton_interpreter.py starts it, or set the variable for the whole run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# bfloat16 is left out: the interpreter multiplies its bit patterns instead of its values
DTYPES = (torch.float64, torch.float32, torch.float16)
# Tensor cores want the softmax rounded to 16 bits before it meets the values. The naive path on the CPU keeps
# it in float32, so its own error is short of that rounding: twice it, as flash-attention allows itself.
FACTORS = {"head_attention": 2.0}


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
