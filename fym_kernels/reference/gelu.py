"""GELU in its tanh approximation, the activation of a DiT's feed-forward network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fym_kernels import checks


def check(x: Tensor) -> None:
    checks.floating("x", x)


def gelu(x: Tensor) -> Tensor:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2; any shape and float dtype."""
    check(x)
    return F.gelu(x, approximate="tanh")
