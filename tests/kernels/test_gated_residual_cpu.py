"""The C++ gated_residual: forward and backward in every dtype and for every instruction set."""

from __future__ import annotations

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, gated_residual

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
TOKENS = 515  # more than two parts of the gate's sum, and no whole number of them


def make(dtype, gate_dtype, per_token: bool, width: int = 37, tokens: int = TOKENS, batch: int = 2):
    x, y = torch.randn(2, batch, tokens, width).to(dtype)
    gate = torch.randn(batch, *((tokens,) if per_token else ()), width).to(gate_dtype)
    return [t.requires_grad_() for t in (x, y, gate)]


def gradients(x, y, gate, grad):
    """The definition of the backward pass, in the dtype of the inputs."""
    if gate.ndim == 3:
        return grad, grad * gate.to(y.dtype), grad * y
    grad_gate = torch.zeros_like(y[:, 0])
    for s in range(y.shape[1]):
        grad_gate += grad[:, s] * y[:, s]
    return grad, grad * gate.unsqueeze(1).to(y.dtype), grad_gate


def check(dtype, gate_dtype, per_token: bool, **sizes: int) -> None:
    tensors = make(dtype, gate_dtype, per_token, **sizes)
    before = [t.detach().clone() for t in tensors]
    out = gated_residual(*tensors, backend="cpu")
    grad = torch.randn(out.shape).to(dtype)
    got = torch.autograd.grad(out, tensors, grad)
    assert [g.dtype for g in got] == [t.dtype for t in tensors]
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
    inputs = tuple(before)
    truth.assert_as_good_as_naive(out.detach(), truth.gated, inputs, dtype)
    # what a gate's gradient is a sum of may cancel
    sizes_of_gradients = gradients(*truth.magnitudes((*inputs, grad)))
    truth.assert_as_good_as_naive(got, gradients, (*inputs, grad), dtype, sizes=sizes_of_gradients)


@pytest.mark.parametrize("per_token", [False, True], ids=["gate per sample", "gate per token"])
@pytest.mark.parametrize("gate_dtype", [torch.float32, None], ids=["float32 gate", "gate like x"])
@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.usefixtures("isa")
def test_forward_and_backward(dtype, gate_dtype, per_token: bool) -> None:
    check(dtype, gate_dtype or dtype, per_token)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3), tokens=st.integers(1, 40), width=st.integers(1, 70), per_token=st.booleans(),
    dtype=st.sampled_from(truth.LOW_DTYPES),
)  # fmt: skip
def test_any_shape(batch, tokens, width, per_token, dtype) -> None:
    check(dtype, dtype, per_token, batch=batch, tokens=tokens, width=width)


@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 64, 100])
@pytest.mark.usefixtures("isa")
def test_every_tail(width: int) -> None:
    tensors = make(torch.float32, torch.float32, False, width, tokens=3)
    out = gated_residual(*tensors, backend="cpu")
    wanted = gated_residual(*tensors, backend="reference")
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
    grad = torch.randn_like(out)
    for got, exact in zip(
        torch.autograd.grad(out, tensors, grad), torch.autograd.grad(wanted, tensors, grad), strict=True
    ):
        torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)


def test_views_are_read_in_place_and_odd_ones_copied() -> None:
    buffer = torch.randn(2, 20, 90)
    gate = torch.randn(2, 20)
    for view in (
        buffer[:, ::3, 5:25],
        buffer.transpose(1, 2)[:, 7:12],
        buffer[:1].expand(2, 20, 90)[..., :20],
    ):
        x, dense = view.clone().requires_grad_(), view.contiguous()
        assert torch.equal(
            gated_residual(view, view, gate, backend="cpu"), gated_residual(dense, dense, gate)
        )
        gated_residual(x, view, gate, backend="cpu").sum().backward()  # its gradient has stride 0
        assert torch.equal(x.grad, torch.ones_like(dense))


@pytest.mark.usefixtures("isa")
def test_rounding_to_storage_is_to_nearest_even() -> None:
    """With a gate of 1 the sum is one float32 addition, so torch's own cast must give the same bits."""
    for dtype in (torch.bfloat16, torch.float16):
        x, y = (
            (torch.randn(1, 64, 999) * 10.0 ** torch.randint(-6, 4, (1, 64, 999))).to(dtype),
            torch.randn(1, 64, 999),
        )
        y = y.to(dtype)
        out = gated_residual(x, y, torch.ones(1, 999), backend="cpu")
        assert torch.equal(out, (x.float() + y.float()).to(dtype))


@pytest.mark.usefixtures("isa")
def test_infinities_and_nans_pass_through() -> None:
    for dtype in truth.LOW_DTYPES:
        x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0, 6e4, -0.0] * 7).to(dtype)[
            None, None
        ]
        y = torch.ones_like(x)
        out = gated_residual(x, y, torch.full((1, 42), 6e4), backend="cpu")
        wanted = (x.float() + 6e4).to(dtype)
        torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("isa")
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    tensors = make(torch.float32, torch.float32, False, 200)
    grad = torch.randn(2, TOKENS, 200)

    def run():
        out = gated_residual(*tensors, backend="cpu")
        return out.detach(), *torch.autograd.grad(out, tensors, grad)

    truth.assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize(
    ("needs", "saved"), [((1, 0, 0), []), ((1, 1, 0), [(2, 37)]), ((1, 1, 1), [(2, 5, 37), (2, 37)])]
)
def test_only_what_the_backward_pass_reads_is_saved(needs, saved) -> None:
    tensors = [
        t.detach().requires_grad_(bool(n))
        for t, n in zip(make(torch.float32, torch.float32, False, tokens=5), needs, strict=True)
    ]
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        out = gated_residual(*tensors, backend="cpu")
    assert sorted(shapes) == saved
    grads = torch.autograd.grad(out.sum(), [t for t, n in zip(tensors, needs, strict=True) if n])
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_opcheck(dtype, per_token: bool) -> None:
    """Schema, fake kernel, autograd registration and tracing agree with the real kernels."""
    tensors = make(dtype, torch.float32, per_token, tokens=5)
    ops = torch.ops.fym_kernels
    torch.library.opcheck(ops.gated_residual.default, tuple(tensors))
    grad, y, gate = (t.detach() for t in tensors)
    for want_y, want_gate in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops.gated_residual_backward.default, (grad, y, gate, want_y, want_gate))


def test_the_op_itself_refuses_shapes_it_cannot_run() -> None:
    x = torch.zeros(2, 5, 7)
    for y, gate in ((x[:, :4], x[:, 0]), (x.half(), x[:, 0]), (x, x[:, :4]), (x, x[0])):
        with pytest.raises(RuntimeError, match="must be"):
            torch.ops.fym_kernels.gated_residual(x, y, gate)


def test_empty_sizes() -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x = torch.zeros(shape, requires_grad=True)
        gate = torch.zeros(shape[0], shape[2], requires_grad=True)
        out = gated_residual(x, x, gate, backend="cpu")
        grads = torch.autograd.grad(out.sum(), (x, gate))
        assert out.shape == shape
        assert torch.equal(grads[1], torch.zeros_like(gate))
