"""The Triton kernel of gated_residual gives the reference's values and gradients, from strided views too."""

from __future__ import annotations

import pytest
import torch
from triton_parity import (  # noqa: F401
    assert_as_good,
    double,
    in_each_dtype,
    interpreted,
    leaf,
    poisoned_memory,
    randn,
    strided,
)

pytestmark = interpreted()

from fym_kernels import reference  # noqa: E402
from fym_kernels.triton import gated_residual  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "case"),
    in_each_dtype([((2, 13, 24), False), ((1, 5, 37), True), ((1, 40, 8), False), ((1, 1, 1), False)]),
)
def test_values_and_gradients(dtype: torch.dtype, case: tuple[tuple[int, int, int], bool]) -> None:
    shape, per_token = case
    batch, _, width = shape
    x, y, grad = (randn(*shape, dtype=dtype, seed=seed) for seed in range(3))
    gate = randn(*(shape if per_token else (batch, width)), dtype=torch.float32, seed=3)
    exact_in, naive_in = double(x, y, gate), leaf(x, y, gate)
    exact, naive = reference.gated_residual(*exact_in), reference.gated_residual(*naive_in)
    exact.backward(grad.double())
    naive.backward(grad)

    x, y, grad = strided(x), strided(y), strided(grad)
    assert_as_good(gated_residual.forward(x, y, gate), naive, exact)
    grad_y, grad_gate = gated_residual.backward(grad, y, gate)
    assert_as_good(grad_y, naive_in[1].grad, exact_in[1].grad, "y")
    assert_as_good(grad_gate, naive_in[2].grad, exact_in[2].grad, "gate")
    only_y, none = gated_residual.backward(grad, y, gate, want_gate=False)
    assert none is None and torch.equal(only_y, grad_y)
    none, only_gate = gated_residual.backward(grad, y, gate, want_y=False)
    assert none is None and torch.equal(only_gate, grad_gate)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    x, gate = torch.ones(shape), torch.ones(shape[0], shape[2])
    assert gated_residual.forward(x, x, gate).shape == shape
    grad_y, grad_gate = gated_residual.backward(x, x, gate)
    assert grad_y.shape == shape and torch.equal(grad_gate, torch.zeros_like(gate))
