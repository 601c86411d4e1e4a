"""How the native backends of an op get their fake kernels and gradients: written once, for every namespace.

An op is defined with one schema in one or two namespaces: `fym_kernels` by the C++ extensions (CPU and CUDA),
`fym_triton` by the Triton kernels. ops/<op>.py says once how to run, trace and differentiate it (`describe`);
each backend that has kernels for it then calls `attach`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import cpu, extension  # noqa: F401  (cpu registers kernels)
from fym_kernels.triton import library

NAMESPACES = {"cpu": "fym_kernels", "cuda": "fym_kernels", "triton": "fym_triton"}
STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Description:
    """run(op, *public arguments): checks them and calls `op`, the torch op, in one of the namespaces.

    fakes: fake kernel of the op and of each of its helpers, by name. save(ctx, inputs, output) and
    backward(op_backward, ctx, *grads): the autograd formula; neither for an op without gradient.
    limits: of backends whose kernel cannot hold every size, `backend.Kernel.limit`.
    """

    run: Callable[..., Any]
    fakes: Mapping[str, Callable[..., Any]]
    save: Callable[..., None] | None
    backward: Callable[..., Any] | None
    limits: Mapping[str, Callable[[Tensor], str]]


_descriptions: dict[str, Description] = {}
_traced: set[tuple[str, str]] = set()  # (namespace, op) whose fakes and gradient are registered


def describe(
    op: str,
    *,
    run: Callable[..., Any],
    fakes: Mapping[str, Callable[..., Any]],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    limits: Mapping[str, Callable[[Tensor], str]] | None = None,
) -> None:
    """Note how `op` runs, traces and differentiates, and attach the kernels that are there."""
    _descriptions[op] = Description(run, fakes, save, backward, limits or {})
    # an extension built before the op existed lacks it, and is no reason to fail the import
    for backend, loaded in (("cpu", extension.CPU_LOADED), ("cuda", extension.CUDA_LOADED)):
        if loaded and all(_implemented(f"fym_kernels::{name}", backend.upper()) for name in fakes):
            attach(op, backend, devices=(backend,))
    if library.LOADED:
        attach(op, "triton", devices=library.DEVICES, dtypes=library.DTYPES)


def attach(
    op: str, backend: str, *, devices: tuple[str, ...], dtypes: tuple[torch.dtype, ...] = STORAGE_DTYPES
) -> None:
    """Make `op`, which is defined in the namespace of `backend`, that backend's kernel."""
    namespace, description = NAMESPACES[backend], _descriptions[op]
    ops = getattr(torch.ops, namespace)
    if (namespace, op) not in _traced:
        _traced.add((namespace, op))
        for name, fake in description.fakes.items():
            torch.library.register_fake(f"{namespace}::{name}", fake)
        if description.backward is not None:
            torch.library.register_autograd(
                f"{namespace}::{op}",
                _bind(description.backward, getattr(ops, f"{op}_backward")),
                setup_context=description.save,
            )
    run = _bind(description.run, getattr(ops, op))
    limit = description.limits.get(backend)
    backends.register(op, backend, run, devices=devices, dtypes=dtypes, limit=limit)


def operators(op: str, tensor: Tensor) -> tuple[Any, Any] | None:
    """The torch op and its backward op that run `op` on tensors like `tensor`; None for the reference.

    For autograd functions that keep less than the op's own formula.
    """
    backend = backends.selected(op, tensor)
    if backend not in NAMESPACES:
        return None
    ops = getattr(torch.ops, NAMESPACES[backend])
    return getattr(ops, op), getattr(ops, f"{op}_backward")


def _implemented(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel(name) and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _bind(function: Callable[..., Any], op: Any) -> Callable[..., Any]:
    def bound(*args: Any, **kwargs: Any) -> Any:
        return function(op, *args, **kwargs)

    return bound


def unread(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Stands in, without memory of its own, for a tensor of which only the shape is looked at."""
    return like.new_empty(()).expand(shape)
