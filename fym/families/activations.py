"""GELU on fym_kernels inside a transformer of diffusers, where it has the tanh approximation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.activations import GELU
from torch import nn

import fym_kernels


def approximated(model: nn.Module) -> list[tuple[Any, str]]:
    """Modules with that GELU, each with the name of the method that computes it; none that another library
    has replaced."""
    found: list[tuple[Any, str]] = []
    for module in model.modules():
        method = {GELU: "gelu", nn.GELU: "forward"}.get(type(module))
        if method and module.approximate == "tanh" and method not in vars(module):
            found.append((module, method))
    return found


@contextmanager
def native_gelu(model: nn.Module) -> Iterator[None]:
    """Runs them on fym_kernels; at the end the modules are as they were."""
    replaced = approximated(model)
    for module, method in replaced:
        setattr(module, method, fym_kernels.gelu)
    try:
        yield
    finally:
        for module, method in replaced:
            delattr(module, method)
