"""Which backend runs: the only place that decides.

Every op has a `reference` in plain PyTorch; native kernels register themselves here with the devices and
dtypes they support, and with the sizes if those have a limit. `choose` picks one, from strongest to weakest
wish: the op's `backend=` argument, `use_backend(...)`, the environment variable FYM_KERNELS_BACKEND (read
once, at import), and "auto", which takes the fastest one that fits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fym_kernels.checks import show

LOG = logging.getLogger("fym_kernels")
BACKENDS = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT_VARIABLE = "FYM_KERNELS_BACKEND"
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


class BackendError(ValueError):
    """The backend asked for does not exist, or cannot run this op on this device and dtype."""


class Kernel(NamedTuple):
    """One implementation of an op. Empty `devices` or `dtypes` mean any.

    limit: why the kernel cannot hold a tensor this large, empty when it can; None: it takes any size.
    """

    function: Callable[..., Any]
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    limit: Callable[[Tensor], str] | None


@dataclass(frozen=True)
class Choice:
    """One row of `explain()`."""

    op: str
    device: str
    dtype: str
    backend: str
    reason: str


class Choices(tuple[Choice, ...]):
    """The rows of `explain()`; str() is a table to print."""

    def __str__(self) -> str:
        rows = [tuple(field.name for field in fields(Choice)), *map(astuple, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


_kernels: dict[str, dict[str, Kernel]] = {op: {} for op in OPS}
_absent: dict[str, str] = {}  # backend -> why none of its kernels could be loaded
_told: set[str] = set()  # what has been logged: once a process is enough


def _known(name: str, where: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"{where} must be auto, {', '.join(BACKENDS)}, got {name!r}")
    return name


_wish = (
    os.environ.get(ENVIRONMENT_VARIABLE, "auto") or "auto"
)  # checked at the first use, so that import never fails
_wished_by = ENVIRONMENT_VARIABLE


def register(
    op: str,
    backend: str,
    function: Callable[..., Any],
    *,
    devices: tuple[str, ...] = (),
    dtypes: tuple[torch.dtype, ...] = (),
    limit: Callable[[Tensor], str] | None = None,
) -> None:
    """Make `function` the `backend` of `op`; the other arguments are those of `Kernel`."""
    _kernels[op][backend] = Kernel(function, devices, dtypes, limit)


def mark_absent(backend: str, reason: str) -> None:
    """Note why no kernel of `backend` is there, for messages and `explain()`."""
    _absent[backend] = reason


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on `name`; "auto" lifts an outer choice. Process-wide, not per thread."""
    global _wish, _wished_by
    _known(name, "use_backend(name)")
    before = _wish, _wished_by
    _wish, _wished_by = name, "use_backend"
    try:
        yield
    finally:
        _wish, _wished_by = before


def choose(op: str, tensor: Tensor, requested: str | None = None) -> Callable[..., Any]:
    """The function that runs `op` on tensors like `tensor`, which is the op's first argument.

    Where the fastest backend cannot hold a tensor this large the next one runs, and one line is logged.
    Raises BackendError (a ValueError) when a backend was asked for by name and cannot run here.
    """
    if not isinstance(tensor, Tensor):
        return _kernels[op]["reference"].function  # whose checks name the argument
    name, _ = _decide(op, tensor.device.type, tensor.dtype, requested, tensor)
    return _kernels[op][name].function


def selected(op: str, tensor: Tensor) -> str:
    """The name of the backend that `op` takes for tensors like `tensor`. Raises BackendError as `choose`."""
    return _decide(op, tensor.device.type, tensor.dtype, None, tensor)[0]


def explain(device: str | None = None, dtypes: tuple[torch.dtype, ...] | None = None) -> Choices:
    """Which backend each op would take now, and why: one row per op and dtype.

    device: "cpu" or "cuda", by default what this machine has. str() of the result is a table.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for op in OPS:
        for dtype in dtypes or (torch.float32, torch.bfloat16):
            try:
                name, reason = _decide(op, device, dtype, None)
            except BackendError as error:
                name, reason = "none", str(error)
            rows.append(Choice(op, device, show(dtype), name, reason))
    return Choices(rows)


def _decide(
    op: str, device: str, dtype: torch.dtype, requested: str | None, tensor: Tensor | None = None
) -> tuple[str, str]:
    """(backend, why). Without a tensor, sizes are taken to fit."""
    wish, by = (_wish, _wished_by) if requested is None else (requested, "backend")
    _known(wish, by)
    if wish != "auto":
        problem = _problem(op, wish, device, dtype) or _limit(op, wish, tensor)
        if problem:
            raise BackendError(
                f"{op} cannot run on backend {wish!r} (asked for by {by}): {problem}; "
                "backend 'auto' takes the fastest one that can"
            )
        return wish, f"asked for by {by}"
    skipped = too_large = ""
    for name in (*_natural(device), "reference"):
        problem = _problem(op, name, device, dtype)
        if not problem:
            problem = _limit(op, name, tensor)
            too_large = too_large or problem
        if not problem:
            if too_large:
                _tell(f"{op} runs on backend {name!r}: {too_large}")
            return name, skipped or f"fastest for {device}"
        skipped = skipped or problem
    raise AssertionError(f"{op} has no reference")


def _natural(device: str) -> tuple[str, ...]:
    """The native backends "auto" tries on `device`, fastest first; interpreted Triton only comes by name."""
    return {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}.get(device, ())


def _problem(op: str, name: str, device: str, dtype: torch.dtype) -> str:
    """Why backend `name` cannot run `op` on this device and dtype; empty when it can."""
    kernel = _kernels[op].get(name)
    if kernel is None:
        return _absent.get(name, f"there is no {name} kernel for this op")
    if kernel.devices and device not in kernel.devices:
        return f"the {name} kernel runs on {', '.join(kernel.devices)}, the tensors are on {device}"
    if kernel.dtypes and dtype not in kernel.dtypes:
        return f"the {name} kernel takes {', '.join(map(show, kernel.dtypes))}, got {show(dtype)}"
    return ""


def _limit(op: str, name: str, tensor: Tensor | None) -> str:
    """Why backend `name`, which can run `op`, cannot hold a tensor this large; empty when it can."""
    limit = _kernels[op][name].limit
    return "" if limit is None or tensor is None else limit(tensor)


def _tell(line: str) -> None:
    if torch.compiler.is_compiling() or line in _told:  # a log call would break the graph
        return
    _told.add(line)
    LOG.warning(line)
