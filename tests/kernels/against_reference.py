"""Holds a native op, with its autograd formula, against the float64 reference and the naive path's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Inputs
from torch import Tensor
from triton_parity import assert_as_good, strided

from fym_kernels import reference

PUBLIC_DEFAULTS = {"qk_norm_rope": {"theta": 10000.0, "eps": 1e-6}}  # what the public function fills in


def check(
    op: str, run: Callable[..., Any], inputs: Inputs, *, view: str | None = None, device: str = "cpu"
) -> list[Tensor]:
    """Values and every gradient of `run` on `device`, which are returned.

    view: "gaps" or "fused": the tensors and the incoming gradients are views, with nan around them, whose
    last dimension is dense; with odd gaps, or the middle third of a buffer, where vectors stay aligned.
    """
    options = {**PUBLIC_DEFAULTS.get(op, {}), **inputs.options}
    first = inputs.arguments[0]

    def outputs_and_gradients(
        function: Callable[..., Any], arguments: tuple[Any, ...], view: str | None
    ) -> list[Tensor]:
        outs = function(*arguments, **options)
        outs = outs if isinstance(outs, tuple) else (outs,)
        generator = torch.Generator().manual_seed(1)
        grads = []
        for out in outs:
            grad = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(first.dtype)
            grad = grad.to(out.device, out.dtype)
            grads.append(_viewed(grad, view))
        leaves = [a for a in _tensors(arguments) if a.requires_grad]
        return [o.detach() for o in outs] + list(torch.autograd.grad(outs, leaves, grads))

    exact = outputs_and_gradients(getattr(reference, op), _copy(inputs.arguments, torch.float64), None)
    naive = outputs_and_gradients(getattr(reference, op), _copy(inputs.arguments, device=device), None)
    given = _copy(inputs.arguments, device=device, view=view)
    before = [t.detach().clone() for t in _tensors(given)]
    actual = outputs_and_gradients(run, given, view)
    assert len(actual) == len(naive) == len(exact)
    for i, (ours, theirs, truth) in enumerate(zip(actual, naive, exact, strict=True)):
        assert ours.isfinite().all(), f"result {i} of {op} has holes"
        assert_as_good(ours.cpu(), theirs.cpu(), truth, f"result {i} of {op}")
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, _tensors(given), strict=True)), "inputs"
    return actual


def _tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in arguments if isinstance(a, Tensor)]


def _copy(
    value: Any, dtype: torch.dtype | None = None, *, device: str = "cpu", view: str | None = None
) -> Any:
    """Detached copies; those that want a gradient want it again, in `dtype` and as a view."""
    if isinstance(value, tuple):
        return tuple(_copy(v, dtype, device=device, view=view) for v in value)
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone().to(device)
    if value.requires_grad:
        copy = _viewed(copy.to(dtype or copy.dtype), view).requires_grad_()
    return copy


def _viewed(x: Tensor, view: str | None) -> Tensor:
    if view is None or x.ndim < 2:
        return x
    if view == "gaps":
        return strided(x)
    middle = min(x.ndim - 1, 2)
    buffer = x.new_full((*x.shape[:middle], 3, *x.shape[middle:]), torch.nan)
    part = buffer.select(middle, 1)
    part.copy_(x)
    return part
