"""The Triton kernel of qk_norm_rope gives the reference's values and gradients for every kind of norm."""

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
from fym_kernels.triton import qk_norm_rope  # noqa: E402

# name: batch, heads, axes_dim, grid, text tokens before, text tokens after
SHAPES = {
    "odd": (2, 3, (4, 2, 2), (2, 1, 2), 1, 1),
    "one-frame": (1, 5, (4, 4, 4), (1, 2, 2), 0, 0),
    "one-row": (1, 2, (8, 0, 8), (3, 1, 2), 0, 0),
    "wan-14b": (1, 40, (44, 42, 42), (2, 1, 1), 0, 0),
    "wan-1.3b": (1, 12, (44, 42, 42), (1, 1, 1), 0, 1),
}


def case(name: str, dtype: torch.dtype, norm: str | None, weighted: bool):
    batch, heads, axes_dim, grid, before, after = SHAPES[name]
    dim = sum(axes_dim)
    tokens = before + grid[0] * grid[1] * grid[2] + after
    q, k, dq, dk = (randn(batch, tokens, heads, dim, dtype=dtype, seed=seed) for seed in range(4))
    size = heads * dim if norm == "across_heads" else dim
    weights = [randn(size, dtype=torch.float32, seed=seed) + 1.5 if weighted else None for seed in (4, 5)]
    time = torch.tensor([[0.0, 3.7, -20.25][: grid[0]]] * batch, dtype=torch.float64)
    time[-1] += 12345.5  # each sample at its own times, far away too
    positions = (time, torch.arange(grid[1]), torch.linspace(0, 5, grid[2], dtype=torch.float32))
    return (q, k, *weights), (dq, dk), positions, {"axes_dim": axes_dim, "rotate_from": before, "norm": norm}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    in_each_dtype(
        [
            ("wan-14b", "across_heads", True, True),
            ("odd", "across_heads", True, True),
            ("odd", "per_head", True, False),
            ("odd", None, False, True),
            ("one-frame", "across_heads", False, False),
            ("one-frame", "per_head", False, True),
            ("one-row", "across_heads", True, True),
            ("wan-1.3b", "across_heads", True, True),
        ]
    ),
)
def test_values_and_gradients(dtype: torch.dtype, kind: tuple[str, str | None, bool, bool]) -> None:
    name, norm, weighted, interleaved = kind
    inputs, grads, positions, options = case(name, dtype, norm, weighted)
    options["interleaved"] = interleaved
    exact_in, naive_in = double(*inputs), leaf(*inputs)
    exact = reference.qk_norm_rope(*exact_in, positions, **options)
    naive = reference.qk_norm_rope(*naive_in, positions, **options)
    torch.autograd.backward(exact, [g.double() for g in grads])
    torch.autograd.backward(naive, grads)

    q, k = strided(inputs[0]), strided(inputs[1])
    dq, dk = (strided(g) for g in grads)
    outs, saved = qk_norm_rope.forward(q, k, *inputs[2:], positions, theta=10000.0, eps=1e-6, **options)
    for actual, n, e in zip(outs, naive, exact, strict=True):
        assert_as_good(actual, n, e)
    actual = qk_norm_rope.backward(dq, dk, q, k, *inputs[2:], saved, want_weights=(True, True), **options)
    for what, a, n, e in zip(
        ("query", "key", "query_weight", "key_weight"), actual, naive_in, exact_in, strict=True
    ):
        if n is None:
            assert a is None
        else:
            assert_as_good(a, n.grad, e.grad, what)


def test_weights_get_no_gradient_unless_wanted_and_one_time_for_all_samples() -> None:
    (q, k, qw, kw), (dq, dk), positions, options = case("odd", torch.float64, "across_heads", True)
    positions = (positions[0][0], *positions[1:])
    options["interleaved"] = True
    outs, saved = qk_norm_rope.forward(q, k, qw, kw, positions, theta=100.0, eps=1e-6, **options)
    expected = reference.qk_norm_rope(q, k, qw, kw, positions, theta=100.0, **options)
    torch.testing.assert_close(outs, expected)
    assert qk_norm_rope.backward(dq, dk, q, k, qw, kw, saved, **options)[2:] == (None, None)


def test_empty() -> None:
    q = torch.ones(0, 4, 2, 8)
    positions = (torch.arange(4), torch.arange(1), torch.arange(1))
    options = {"axes_dim": (4, 2, 2), "norm": "across_heads", "rotate_from": 0, "interleaved": True}
    outs, saved = qk_norm_rope.forward(q, q, None, None, positions, theta=100.0, eps=1e-6, **options)
    grads = qk_norm_rope.backward(q, q, q, q, None, None, saved, **options)
    assert outs[0].shape == outs[1].shape == grads[0].shape == grads[1].shape == q.shape
