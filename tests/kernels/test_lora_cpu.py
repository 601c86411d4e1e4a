"""lora_qkv and lora_linear on the CPU: values, gradients, and what they keep for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, lora_linear, lora_qkv

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
HEADS, HEAD_DIM, SCALE = 5, 12, 0.7
WIDTH, D_IN = HEADS * HEAD_DIM, 44
ACTIVE = {"some": [0, 3, 4], "one": [2], "all": [0, 1, 2, 3, 4], "none": []}
each_active = pytest.mark.parametrize("active", ACTIVE.values(), ids=ACTIVE.keys())
each_dtype = pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)


def make(active, dtype, *, batch=2, tokens=33, rank=6, factors=torch.float32):
    """x, weights, biases, A, B, heads, and gradients of the outputs."""
    x = torch.randn(batch, tokens, D_IN).to(dtype)
    weights = tuple((torch.randn(WIDTH, D_IN) / D_IN**0.5).to(dtype) for _ in range(3))
    biases = tuple(torch.randn(WIDTH).to(dtype) for _ in range(3))
    a = tuple((torch.randn(rank, D_IN) / D_IN**0.5).to(factors) for _ in range(3))
    b = tuple(torch.randn(len(active) * HEAD_DIM, rank).to(factors) for _ in range(3))
    grads = tuple(torch.randn(batch, tokens, WIDTH).to(dtype) for _ in range(3))
    return x, weights, biases, a, b, torch.tensor(active, dtype=torch.int64), grads


def differentiate(outputs, leaves, grads):
    used = [t for t in leaves if t.numel()]
    got = torch.autograd.grad(outputs, used, grads, allow_unused=True)
    return [o.detach() for o in outputs] + [
        torch.zeros_like(t) if g is None else g for t, g in zip(used, got, strict=True)
    ]


def naive(x, weights, biases, a, b, heads, grads):
    """Layer plus low-rank branch, every tensor in the dtype of x, as under autocast."""
    leaves = [t.to(x.dtype).requires_grad_() for t in (x, *a, *b)]
    x, a, b = leaves[0], leaves[1:4], leaves[4:]
    outputs = [
        F.linear(x, weights[i], biases[i])
        + SCALE * F.linear(F.linear(x, a[i]), truth.spread_rows(b[i], heads, HEAD_DIM, WIDTH))
        for i in range(3)
    ]
    return differentiate(outputs, leaves, grads)


def ours(x, weights, biases, a, b, heads, grads):
    leaves = [t.clone().requires_grad_() for t in (x, *a, *b)]
    outputs = lora_qkv(
        leaves[0], weights, biases, leaves[1:4], leaves[4:], heads,
        head_dim=HEAD_DIM, scale=SCALE, backend="cpu",
    )  # fmt: skip
    return differentiate(outputs, leaves, grads)


@pytest.mark.parametrize("factors", [torch.float32, None], ids=["float32 factors", "factors like x"])
@each_active
@each_dtype
def test_qkv_and_every_gradient(dtype, active, factors) -> None:
    inputs = make(active, dtype, factors=factors or dtype)
    before = truth.cast(inputs, dtype), inputs
    got = ours(*inputs)
    assert got[0].dtype == dtype and got[-1].dtype in (dtype, factors)
    truth.assert_as_good_as_naive(got, naive, inputs, dtype)
    for one, other in zip(before[0][1] + before[0][4], inputs[1] + inputs[4], strict=True):
        assert torch.equal(one, other.to(dtype)), "an input was written"


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3), tokens=st.integers(1, 40), rank=st.integers(1, 17),
    active=st.sets(st.integers(0, HEADS - 1)).map(sorted), dtype=st.sampled_from(truth.LOW_DTYPES),
)  # fmt: skip
def test_any_shape(batch, tokens, rank, active, dtype) -> None:
    inputs = make(active, dtype, batch=batch, tokens=tokens, rank=rank)
    # with one token and rank 1 a single product, which may cancel, scales a whole gradient
    sizes = naive(*truth.magnitudes(inputs))
    truth.assert_as_good_as_naive(ours(*inputs), naive, inputs, dtype, sizes=sizes)


@pytest.mark.parametrize("side", ["out", "in"])
@each_active
@each_dtype
def test_linear_and_every_gradient(dtype, active, side) -> None:
    d_in, d_out = (D_IN, WIDTH) if side == "out" else (WIDTH, D_IN)
    used = len(active) * HEAD_DIM
    heads = torch.tensor(active, dtype=torch.int64)
    x, weight = torch.randn(2, 33, d_in).to(dtype), (torch.randn(d_out, d_in) / d_in**0.5).to(dtype)
    bias, grad = torch.randn(d_out).to(dtype), torch.randn(2, 33, d_out).to(dtype)
    a = torch.randn(7, d_in if side == "out" else used) / d_in**0.5
    b = torch.randn(used if side == "out" else d_out, 7)

    def definition(x, weight, bias, a, b, heads, grad):
        leaves = [t.to(x.dtype).requires_grad_() for t in (x, a, b)]
        x, a, b = leaves
        if side == "out":
            b = truth.spread_rows(b, heads, HEAD_DIM, WIDTH)
        else:
            a = truth.spread_rows(a.T, heads, HEAD_DIM, WIDTH).T
        y = F.linear(x, weight, bias) + SCALE * F.linear(F.linear(x, a), b)
        return differentiate([y], leaves, [grad])

    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    options = {"scale": SCALE, "active_heads": heads, "head_dim": HEAD_DIM, "side": side, "backend": "cpu"}
    y = lora_linear(leaves[0], weight, bias, *leaves[1:], **options)
    inputs = (x, weight, bias, a, b, heads, grad)
    truth.assert_as_good_as_naive(differentiate([y], leaves, [grad]), definition, inputs, dtype)


@each_dtype
def test_inactive_heads_equal_the_base_layer_bit_for_bit(dtype) -> None:
    active = [0, 3]
    x, weights, biases, a, b, heads, _ = make(active, dtype)
    outputs = lora_qkv(x, weights, biases, a, b, heads, head_dim=HEAD_DIM, scale=SCALE, backend="cpu")
    for y, weight, bias in zip(outputs, weights, biases, strict=True):
        base = F.linear(x, weight, bias).unflatten(2, (HEADS, HEAD_DIM))
        for head, (one, other) in enumerate(
            zip(y.unflatten(2, (HEADS, HEAD_DIM)).unbind(2), base.unbind(2), strict=True)
        ):
            assert torch.equal(one, other) == (head not in active)


def test_x_is_saved_once_and_beside_it_only_its_projection() -> None:
    """The bytes kept for the backward pass: x, s = x A^T in float32, and parameters that live anyway."""
    x, weights, biases, a, b, heads, grads = make([1, 4], torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, *a, *b)]
    saved: dict[int, torch.Tensor] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outputs = lora_qkv(x, weights, biases, a, b, heads, head_dim=HEAD_DIM, scale=SCALE, backend="cpu")
    parameters = {t.untyped_storage().data_ptr() for t in (*weights, *biases, *a, *b, heads)}
    per_call = [t for pointer, t in saved.items() if pointer not in parameters]
    tokens, ranks = x.shape[0] * x.shape[1], sum(t.shape[0] for t in a)
    assert sum(t.untyped_storage().nbytes() for t in per_call) == tokens * (2 * D_IN + 4 * ranks)
    assert x.untyped_storage().data_ptr() in saved
    assert all(g.isfinite().all() for g in torch.autograd.grad(outputs, leaves, grads))


def test_without_a_gradient_for_the_factors_nothing_of_the_tokens_is_saved() -> None:
    x, weights, biases, a, b, heads, grads = make([1, 4], torch.float32)
    x.requires_grad_()
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        outputs = lora_qkv(x, weights, biases, a, b, heads, head_dim=HEAD_DIM, scale=SCALE, backend="cpu")
    assert not any(shape[:2] == x.shape[:2] for shape in shapes)
    wanted = ours(x.detach(), weights, biases, a, b, heads, grads)[3]
    assert torch.equal(torch.autograd.grad(outputs, x, grads)[0], wanted)


def test_base_weights_that_do_want_a_gradient_get_it() -> None:
    x, weights, biases, a, b, heads, grads = make([1], torch.float32)
    parameters = [t.requires_grad_() for t in (*weights, *biases)]
    run = [
        lora_qkv(x, weights, biases, a, b, heads, head_dim=HEAD_DIM, scale=SCALE, backend=backend)
        for backend in ("cpu", "reference")
    ]
    got, wanted = (torch.autograd.grad(outputs, parameters, grads) for outputs in run)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_one_output_alone_and_strided_inputs() -> None:
    x, weights, biases, a, b, heads, grads = make([0, 2], torch.float32)
    wide = torch.randn(2, 40, 3 * D_IN)
    wide[:, 3:36, D_IN : 2 * D_IN] = x
    view = wide[:, 3:36, D_IN : 2 * D_IN]
    for value in (x, view):
        leaf = value.requires_grad_() if value is x else value.detach().requires_grad_()
        outputs = lora_qkv(leaf, weights, biases, a, b, heads, head_dim=HEAD_DIM, scale=SCALE, backend="cpu")
        strided_grad = grads[1].transpose(0, 1).contiguous().transpose(0, 1)
        torch.autograd.backward(outputs[1], strided_grad)
    zero = torch.zeros_like(grads[0])
    wanted = ours(x.detach(), weights, biases, a, b, heads, (zero, grads[1], zero))[3]
    torch.testing.assert_close(x.grad, wanted, rtol=1e-5, atol=1e-5)


@each_dtype
def test_every_run_gives_the_same_bits(dtype) -> None:
    """The products are the BLAS library's: with one number of threads. It promises no more."""
    inputs = make([0, 2], dtype, tokens=70)
    assert all(torch.equal(a, b) for a, b in zip(ours(*inputs), ours(*inputs), strict=True))


def test_empty_sizes() -> None:
    for batch, tokens, rank in ((0, 3, 4), (2, 0, 4), (1, 3, 0)):
        got = ours(*make([1], torch.float32, batch=batch, tokens=tokens, rank=rank))
        assert got[0].shape == (batch, tokens, WIDTH) and all(g.isfinite().all() for g in got)


@each_active
def test_opcheck(active) -> None:
    """Schema, fake kernel, autograd registration and tracing agree with the real kernels."""
    x, weights, biases, a, b, heads, grads = make(active, torch.bfloat16, tokens=5)
    ops, options = torch.ops.fym_kernels, (HEAD_DIM, SCALE)
    leaves = [t.requires_grad_() for t in (x, *a, *b)]
    torch.library.opcheck(ops.lora_qkv.default, (leaves[0], *weights, *biases, *leaves[1:], heads, *options))
    x, a, b = x.detach(), [t.detach() for t in a], [t.detach() for t in b]
    s = ops.lora_qkv(x, *weights, *biases, *a, *b, heads, *options)[3]
    for wants in ((True, True), (True, False), (False, True)):
        arguments = (list(grads), x, list(weights), a, b, heads, s, *options, *wants)
        torch.library.opcheck(ops.lora_qkv_backward.default, arguments)
    linear = (x, weights[0], biases[0], a[0], b[0], heads, *options, "out")
    torch.library.opcheck(ops.lora_linear.default, linear)
    s = ops.lora_linear(*linear)[1]
    arguments = (grads[0], x, weights[0], a[0], b[0], heads, s, *options, "out", True, True)
    torch.library.opcheck(ops.lora_linear_backward.default, arguments)


def test_traces_without_a_graph_break() -> None:
    x, weights, biases, a, b, heads, _ = make([0, 3], torch.float32)
    leaves = [t.requires_grad_() for t in (x, *a, *b)]

    def step(x, *factors):
        out = lora_qkv(x, weights, biases, factors[:3], factors[3:], heads, head_dim=HEAD_DIM, scale=SCALE)
        options = {"scale": SCALE, "active_heads": heads, "head_dim": HEAD_DIM, "side": "in"}
        again = lora_linear(out[0], weights[0].T, None, factors[3].T, factors[0].T, **options)
        return sum(o.square().sum() for o in (*out[1:], again))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(step(*leaves), leaves))
