"""Triton kernels, one file an op: forward and backward launchers on plain tensors, no autograd, no dispatch.

Nothing here imports triton until `load` is called, so this package imports on machines without it.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

OPS = (
    "qk_norm_rope",
    "modulated_norm",
    "gated_residual",
    "gelu",
    "lora_qkv",
    "lora_linear",
    "head_attention",
    "head_scores",
    "motion_loss",
)


class TritonMissingError(ImportError):
    """A Triton kernel was asked for, and triton cannot be imported here."""


def problem() -> str:
    """Why no Triton kernel can be loaded here; empty when they can."""
    try:
        found = importlib.util.find_spec("triton") is not None
    except ValueError:  # a placeholder stands in for the module
        found = False
    if not found:
        return "the triton package is not installed (pip install triton, Linux only)"
    return ""


def load(op: str) -> ModuleType:
    """The module with the launchers of `op`: its docstring gives their signatures.

    Raises KeyError for an op without a Triton kernel, and TritonMissingError where triton is not installed.
    """
    if op not in OPS:
        raise KeyError(f"no Triton kernel for {op!r}; there is one for {', '.join(OPS)}")
    missing = problem()
    if missing:
        raise TritonMissingError(f"the Triton kernel of {op} cannot be loaded: {missing}")
    return importlib.import_module(f"{__name__}.{op}")
