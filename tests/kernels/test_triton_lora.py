"""The Triton kernels of lora_qkv and lora_linear give the reference's values and gradients."""

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
from fym_kernels.triton import lora_linear, lora_qkv, low_rank  # noqa: E402

SCALE = 0.5  # exact in float32, the type of a kernel's scalar argument
# heads, head_dim, active heads
HEADS = {
    "some": (3, 12, (0, 2)),
    "one": (5, 16, (3,)),
    "none": (2, 8, ()),
    "all": (2, 20, (0, 1)),
}


def data(dtype: torch.dtype, heads: str, rank: int, count: int, factor_dtype: torch.dtype | None = None):
    number, head_dim, active = HEADS[heads]
    d_in, d_out, rows = 40, number * head_dim, len(active) * head_dim
    factor_dtype = factor_dtype or dtype
    x = randn(2, 9, d_in, dtype=dtype, seed=0)
    weights = [randn(d_out, d_in, dtype=dtype, seed=10 + i) * d_in**-0.5 for i in range(count)]
    biases = [randn(d_out, dtype=dtype, seed=20 + i) for i in range(count)]
    a = [randn(rank, d_in, dtype=factor_dtype, seed=30 + i) * d_in**-0.5 for i in range(count)]
    b = [randn(rows, rank, dtype=factor_dtype, seed=40 + i) for i in range(count)]
    grads = [randn(2, 9, d_out, dtype=dtype, seed=50 + i) for i in range(count)]
    return x, weights, biases, a, b, grads, torch.tensor(active, dtype=torch.int64), head_dim


@pytest.mark.parametrize(
    ("dtype", "case"), in_each_dtype([("some", 5), ("one", 16), ("none", 4), ("all", 1)])
)
def test_lora_qkv(dtype: torch.dtype, case: tuple[str, int]) -> None:
    heads, rank = case
    factor_dtype = torch.float32 if dtype == torch.float16 else dtype  # float32 factors beside 16-bit ones
    x, w, bias, a, b, grads, active, head_dim = data(dtype, heads, rank, 3, factor_dtype)
    options = {"head_dim": head_dim, "scale": SCALE}
    results = []
    for copy in (double, leaf):
        xs, ws, bs, aa, bb = copy(x), copy(*w), copy(*bias), copy(*a), copy(*b)
        outs = reference.lora_qkv(xs[0], ws, bs, aa, bb, active, **options)
        torch.autograd.backward(outs, [g.to(outs[0].dtype) for g in grads])
        results.append((outs, xs[0].grad, aa, bb))
    exact, naive = results

    x, grads = strided(x), [strided(g) for g in grads]
    outs, s = lora_qkv.forward(x, w, bias, a, b, active, **options)
    for i in range(3):
        assert_as_good(outs[i], naive[0][i], exact[0][i], "qkv"[i])
        untouched = torch.nn.functional.linear(x, w[i], bias[i]).unflatten(-1, (-1, head_dim))
        rest = [h for h in range(HEADS[heads][0]) if h not in HEADS[heads][2]]
        assert torch.equal(outs[i].unflatten(-1, (-1, head_dim))[:, :, rest], untouched[:, :, rest])
    grad_x, grad_a, grad_b = lora_qkv.backward(grads, x, w, a, b, active, s, **options)
    assert_as_good(grad_x, naive[1], exact[1], "x")
    for what, actual, n, e in (("a", grad_a, naive[2], exact[2]), ("b", grad_b, naive[3], exact[3])):
        for i in range(3):
            zero = torch.zeros_like(n[i])
            n_grad, e_grad = (zero, zero) if n[i].grad is None else (n[i].grad, e[i].grad)
            assert_as_good(actual[i], n_grad, e_grad, what)


@pytest.mark.parametrize(
    ("dtype", "case"), in_each_dtype([("some", "in"), ("some", "out"), (None, "out"), ("one", "in")])
)
def test_lora_linear(dtype: torch.dtype, case: tuple[str | None, str]) -> None:
    heads, side = case
    number, head_dim, active_heads = HEADS[heads or "some"]
    width, other, rank = number * head_dim, 24, 6
    used = len(active_heads) * head_dim if heads else width
    d_in, d_out = (width, other) if side == "in" else (other, width)
    a_in, b_out = (used, other) if side == "in" else (other, used)
    x, grad = randn(1, 18, d_in, dtype=dtype, seed=0), randn(1, 18, d_out, dtype=dtype, seed=1)
    w = randn(d_out, d_in, dtype=dtype, seed=2) * d_in**-0.5
    a, b = randn(rank, a_in, dtype=dtype, seed=3) * a_in**-0.5, randn(b_out, rank, dtype=dtype, seed=4)
    active = torch.tensor(active_heads) if heads else None
    options = {"scale": SCALE, "active_heads": active, "head_dim": head_dim if heads else None, "side": side}
    exact_in, naive_in = double(x, w, a, b), leaf(x, w, a, b)
    exact = reference.lora_linear(*exact_in[:2], None, *exact_in[2:], **options)
    naive = reference.lora_linear(*naive_in[:2], None, *naive_in[2:], **options)
    exact.backward(grad.double())
    naive.backward(grad)

    x, grad = strided(x), strided(grad)
    out, s = lora_linear.forward(x, w, None, a, b, **options)
    assert_as_good(out, naive, exact)
    actual = lora_linear.backward(grad, x, w, a, b, s, **options)
    for what, i, value in zip("xab", (0, 2, 3), actual, strict=True):
        assert_as_good(value, naive_in[i].grad, exact_in[i].grad, what)


def test_three_bfloat16_terms_hold_a_float32() -> None:
    """The split `_dot` makes of a float32 beside bfloat16, which the interpreter cannot multiply."""
    x = randn(10000, dtype=torch.float32, seed=0)
    high = x.bfloat16()
    middle = (x - high.float()).bfloat16()
    low = (x - high.float() - middle.float()).bfloat16()
    kept = high.double() + middle.double() + low.double()
    assert ((kept - x.double()).abs() <= 2.0**-24 * x.double().abs()).all()


def test_partial_sums_over_many_splits() -> None:
    x, s = randn(1, 300, 24, dtype=torch.float64, seed=0), randn(300, 3, dtype=torch.float64, seed=1)
    columns = low_rank.columns_of(24, None, None, x)
    actual = low_rank.reduce(x, columns, s, 2.0, torch.float64, rank_first=True)
    torch.testing.assert_close(actual, 2 * s.T @ x[0])
    again = low_rank.reduce(x, columns, s, 2.0, torch.float64, rank_first=True)
    assert torch.equal(actual, again)
