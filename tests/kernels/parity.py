"""Holds a native backend against the reference on the cases: values, gradients, and what must not change.

Device-independent: the Triton interpreter and tests/gpu share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cases import Case, Inputs
from torch import Tensor
from torch.utils import _pytree as pytree

import fym_kernels


class Result(NamedTuple):
    """Every output, and the gradient of every input that requires one, in order."""

    outputs: list[Tensor]
    gradients: list[Tensor]


def convert(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with `function` of every tensor, detached; what required a gradient still does."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        new = function(value.detach())
        new = new.clone() if new is value or new.data_ptr() == value.data_ptr() else new
        return new.requires_grad_(value.requires_grad)

    return Inputs(*pytree.tree_map(one, tuple(inputs)))


def double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def strided(x: Tensor) -> Tensor:
    """The values of `x` in a view that is dense in its last dimension only, with odd gaps in the others."""
    if x.ndim < 2 or not x.is_floating_point():
        return x
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1] + 3), torch.nan, dtype=x.dtype)
    view = wide.to(x.device)[..., : x.shape[-2], 2 : x.shape[-1] + 2]
    return view.copy_(x)


def run(op: str, inputs: Inputs, backend: str, *, seed: int = 1) -> Result:
    """One forward and backward pass; gradients of the outputs are the same numbers in every dtype."""
    arguments, options = inputs
    outputs = getattr(fym_kernels, op)(*arguments, **options, backend=backend)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = [x for x in pytree.tree_leaves(tuple(inputs)) if isinstance(x, Tensor) and x.requires_grad]
    if not leaves:
        return Result(outputs, [])
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    gradients = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    zeros = (torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))
    return Result([o.detach() for o in outputs], list(zeros))


def assert_as_good(
    actual: Tensor, naive: Tensor, exact: Tensor, what: str = "", *, factor: float = 1.5, size: float = 0.0
) -> None:
    """`actual` is as close to the float64 `exact` as plain PyTorch in the same dtype, within `factor`.

    The second term is the rounding of a few operations in the accumulation dtype, for results that the
    naive path happens to hit exactly. In float64 it does so always, being the oracle itself: what is left is
    another order of summation, and cancellation in the gradients. `size`: the norm of what cancels there
    where nothing is left of it (with a single key, the gradients of query and key).
    """
    assert actual.shape == exact.shape and actual.dtype == naive.dtype, what
    exact = exact.detach().double()
    error = (actual.detach().double() - exact).norm()
    naive_error = (naive.detach().double() - exact).norm()
    wide = actual.dtype == torch.float64
    few = 500 * torch.finfo(torch.float64).eps if wide else 8 * torch.finfo(torch.float32).eps
    norm = max(float(exact.norm()), size) if wide else exact.norm()
    bound = factor * naive_error + few * norm + torch.finfo(actual.dtype).tiny
    assert error <= bound, f"{what}: error {error:.3g}, naive {naive_error:.3g}, size {exact.norm():.3g}"


def assert_parity(
    case: Case,
    dtype: torch.dtype,
    backend: str,
    *,
    device: str = "cpu",
    layout: Callable[[Tensor], Tensor] = strided,
    factor: float = 1.5,
) -> None:
    """`backend` is as good as the naive path, gives the same bits again, and leaves its inputs alone.

    layout: what makes the tensors it gets, `strided` views or `torch.clone` for dense ones.
    """
    inputs = case.inputs(dtype)
    exact = run(case.op, convert(inputs, double), "reference")
    naive = run(case.op, inputs, "reference")
    given = convert(inputs, lambda x: layout(x.to(device)))
    before = convert(given, torch.clone)
    actual, again = (run(case.op, given, backend) for _ in range(2))
    size = max(float(tensor.double().norm()) for part in exact for tensor in part)
    for part, a, b, n, e in zip(Result._fields, actual, again, naive, exact, strict=True):
        assert len(a) == len(n)
        for i, (one, same, rough, truth) in enumerate(zip(a, b, n, e, strict=True)):
            what = f"{case.op} {case.name}: {part} {i}"
            assert_as_good(one.cpu(), rough, truth, what, factor=factor, size=size)
            assert torch.equal(one, same), f"{what} differs between two runs"
    tensors = zip(*(pytree.tree_leaves(tuple(x)) for x in (given, before)), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors if isinstance(a, Tensor)), "an input has changed"
