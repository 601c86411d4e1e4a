"""The Triton kernels of head_attention give the reference's values and gradients for every kind of head."""

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
from fym_kernels.triton import head_attention  # noqa: E402

# Tensor cores want the softmax rounded to 16 bits before it meets the values. The naive path on the CPU keeps
# it in float32, so its own error is short of that rounding: twice it, as flash-attention allows itself.
ROUNDING = 2.0

# name: batch, head_dim, kinds, grid, options
CASES = {
    "all-kinds": (1, 12, (0, 1, 2), (3, 2, 3), {}),
    "windows": (2, 16, (1, 2), (3, 3, 2), {"frame_window": 1, "location_window": 1, "scale": 0.3}),
    "sink": (1, 8, (2, 0), (2, 3, 3), {"first_frame_sink": True}),
    "sink-window": (1, 20, (2,), (2, 4, 3), {"first_frame_sink": True, "location_window": 2}),
    "one-frame": (1, 16, (2, 1), (1, 3, 5), {"location_window": 1}),
    "one-place": (1, 16, (1, 2, 0), (17, 1, 1), {"frame_window": 20}),
}


@pytest.mark.parametrize(("dtype", "name"), in_each_dtype(CASES))
def test_values_and_gradients(dtype: torch.dtype, name: str) -> None:
    batch, dim, kinds, grid, options = CASES[name]
    shape = (batch, grid[0] * grid[1] * grid[2], len(kinds), dim)
    q, k, v, grad = (randn(*shape, dtype=dtype, seed=seed) for seed in range(4))
    kind = torch.tensor(kinds, dtype=torch.int8)
    exact_in, naive_in = double(q, k, v), leaf(q, k, v)
    exact = reference.head_attention(*exact_in, kind, grid, **options)
    naive = reference.head_attention(*naive_in, kind, grid, **options)
    exact.backward(grad.double())
    naive.backward(grad)

    q, k, v, grad = (strided(x) for x in (q, k, v, grad))
    out, lse = head_attention.forward(q, k, v, kind, grid, **options)
    assert_as_good(out, naive, exact, factor=ROUNDING)
    grads = head_attention.backward(grad, q, k, v, out, lse, kind, grid, **options)
    for what, actual, n, e in zip("qkv", grads, naive_in, exact_in, strict=True):
        assert_as_good(actual, n.grad, e.grad, what, factor=ROUNDING)


def test_logsumexp_of_a_full_head() -> None:
    q, k = (randn(1, 21, 1, 8, dtype=torch.float64, seed=seed) for seed in range(2))
    kind = torch.zeros(1, dtype=torch.int8)
    _, lse = head_attention.forward(q, k, k, kind, (3, 7, 1))
    logits = q[0, :, 0] @ k[0, :, 0].T * 8**-0.5
    torch.testing.assert_close(lse[0, 0], logits.logsumexp(1))
