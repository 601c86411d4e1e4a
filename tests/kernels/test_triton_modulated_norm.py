"""The Triton kernel of modulated_norm gives the reference's values and gradients, from strided views too."""

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
from fym_kernels.triton import modulated_norm  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "case"),
    in_each_dtype([((1, 3, 1536), False), ((2, 5, 24), False), ((1, 3, 37), True), ((1, 1, 1), False)]),
)
def test_values_and_gradients(dtype: torch.dtype, case: tuple[tuple[int, int, int], bool]) -> None:
    shape, per_token = case
    batch, _, width = shape
    x, grad = (randn(*shape, dtype=dtype, seed=seed) for seed in range(2))
    x = x * 3 + 2
    scale, shift = (
        randn(*(shape if per_token else (batch, width)), dtype=torch.float32, seed=seed) for seed in (2, 3)
    )
    exact_in, naive_in = double(x, scale, shift), leaf(x, scale, shift)
    exact, naive = reference.modulated_norm(*exact_in), reference.modulated_norm(*naive_in)
    exact.backward(grad.double())
    naive.backward(grad)

    x, grad = strided(x), strided(grad)
    out, mean, rstd = modulated_norm.forward(x, scale, shift, eps=1e-6)
    assert_as_good(out, naive, exact)
    grads = modulated_norm.backward(grad, x, scale, mean, rstd)
    for name, actual, naive_leaf, exact_leaf in zip(
        ("x", "scale", "shift"), grads, naive_in, exact_in, strict=True
    ):
        if width > 1 or name == "shift":  # one channel is its own mean: the rest is rounding over sqrt(eps)
            assert_as_good(actual, naive_leaf.grad, exact_leaf.grad, name)


def test_scale_per_sample_with_shift_per_token() -> None:
    x, grad, shift = (randn(2, 5, 12, dtype=torch.float64, seed=seed) for seed in range(3))
    scale = randn(2, 12, dtype=torch.float64, seed=3)
    inputs = double(x, scale, shift)
    exact = reference.modulated_norm(*inputs)
    exact.backward(grad)
    out, mean, rstd = modulated_norm.forward(x, scale, shift, eps=1e-6)
    torch.testing.assert_close(out, exact.detach())
    grads = modulated_norm.backward(grad, x, scale, mean, rstd, shift_per_token=True)
    for actual, expected in zip(grads, inputs, strict=True):
        torch.testing.assert_close(actual, expected.grad)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
def test_empty(shape: tuple[int, int, int]) -> None:
    x, scale = torch.ones(shape), torch.ones(shape[0], shape[2])
    out, mean, rstd = modulated_norm.forward(x, scale, scale, eps=1e-6)
    grads = modulated_norm.backward(x, x, scale, mean, rstd)
    assert out.shape == grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(scale)) and torch.equal(grads[2], torch.zeros_like(scale))
