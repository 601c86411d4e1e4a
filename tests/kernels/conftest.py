"""Fresh random inputs in every run; a failing test prints the seed that brings it back.

Also what the tests of the C++ kernels share: one instruction set after the other, outputs full of nan until
they are written.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch

from fym_kernels import extension


@pytest.fixture(autouse=True)
def seed() -> None:
    value = int(os.environ.get("FYM_TEST_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"FYM_TEST_SEED={value}")
    torch.manual_seed(value)


@pytest.fixture(params=range(len(extension.CPU_ISAS)), ids=extension.CPU_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the test with the instruction set held down to each one this processor has."""
    if not extension.CPU_LOADED:
        pytest.skip("the C++ extension is not built")
    limit = torch.ops.fym_kernels.limit_cpu_isa
    try:
        if limit(request.param) < request.param:
            pytest.skip("not on this processor")
        yield
    finally:
        limit(len(extension.CPU_ISAS))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that no kernel has written reads as nan."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
