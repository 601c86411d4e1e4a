"""Fresh random inputs in every run; a failing test prints the seed that brings it back."""

from __future__ import annotations

import os
import random

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    value = int(os.environ.get("FYM_TEST_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"FYM_TEST_SEED={value}")
    torch.manual_seed(value)
