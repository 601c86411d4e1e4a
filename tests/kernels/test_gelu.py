"""gelu: its definition on every backend, and the C++ kernel in every dtype and for every instruction set."""

from __future__ import annotations

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, gelu

needs_extension = pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built")


def check(x: torch.Tensor) -> None:
    """Forward and backward of the C++ kernel against float64, element by element.

    Measured over [-9, 9] and 400,000 normal numbers: 0.98 eps |x| and 1.75 eps |grad| at most in float32
    (PyTorch's own: 0.94 and 8.7), half an eps in the 16-bit types.
    """
    leaf, grad = x.clone().requires_grad_(), torch.randn(x.shape).to(x.dtype)
    out = gelu(leaf, backend="cpu")
    assert torch.equal(leaf, x) and out.dtype == x.dtype
    [got] = torch.autograd.grad(out, leaf, grad)
    limits = torch.finfo(x.dtype)
    wide, wide_grad = x.double(), grad.double()
    error = out.detach().double() - truth.gelu(wide)
    assert (error.abs() <= 1.25 * limits.eps * wide.abs() + limits.smallest_normal * limits.eps).all()
    error = got.double() - truth.gelu_gradient(wide, wide_grad)
    assert (error.abs() <= 2.25 * limits.eps * wide_grad.abs() + limits.smallest_normal * limits.eps).all()


def test_it_equals_the_definition() -> None:
    x = torch.linspace(-12, 12, 999, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), truth.gelu(x), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(gelu, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


@needs_extension
@pytest.mark.parametrize("size", [0.01, 1.0, 5.0, 10.0])
@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.usefixtures("isa", "poisoned")
def test_forward_and_backward(dtype: torch.dtype, size: float) -> None:
    check((size * torch.randn(3, 1234)).to(dtype))


@needs_extension
@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(0, 40), max_size=3), dtype=st.sampled_from(truth.LOW_DTYPES))
def test_any_shape(shape: list[int], dtype: torch.dtype) -> None:
    check(torch.randn(shape).to(dtype))


@needs_extension
@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 64, 100])
@pytest.mark.usefixtures("isa", "poisoned")
def test_every_tail(count: int) -> None:
    check(torch.randn(count))


@needs_extension
@pytest.mark.usefixtures("isa")
def test_far_from_zero_it_is_the_identity_or_zero_and_nan_stays() -> None:
    """Where x^3 or the exponential leave float32; no slope there is a subnormal, which would be slow."""
    x = torch.tensor([9.0, 12.0, 1e5, 1e30, torch.inf], requires_grad=True)
    for sign in (1, -1):
        out = gelu(sign * x, backend="cpu")
        [slope] = torch.autograd.grad(out.sum(), x)
        if sign > 0:
            assert torch.equal(out, x) and torch.equal(slope, torch.ones(5))
        else:
            assert (out.abs() < 1e-20).all() and (slope.abs() < 1e-18).all()
            assert (slope.abs() > 1e-30).all()
    nan = torch.full((3,), torch.nan, requires_grad=True)
    assert gelu(nan, backend="cpu").isnan().all()
    assert torch.autograd.grad(gelu(nan, backend="cpu").sum(), nan)[0].isnan().all()


@needs_extension
def test_views_and_any_number_of_threads() -> None:
    buffer = torch.randn(40, 50, 60)
    for view in (buffer[::3, :, 5:25], buffer.transpose(0, 2), buffer[:1].expand(7, 50, 60)):
        leaf = view.clone().requires_grad_()
        assert torch.equal(gelu(view, backend="cpu"), gelu(view.contiguous(), backend="cpu"))
        gelu(leaf, backend="cpu").sum().backward()  # its gradient has stride 0
        torch.testing.assert_close(leaf.grad, truth.gelu_gradient(view, torch.ones_like(view)))
    grad = torch.randn_like(buffer)
    backward = torch.ops.fym_kernels.gelu_backward
    truth.assert_same_bits_for_any_threads(lambda: (gelu(buffer, backend="cpu"), backward(grad, buffer)))


def test_bad_input_names_the_argument() -> None:
    for wrong, said in (([1.0], "x must be a tensor, got list"), (torch.ones(3).int(), "x must be float32")):
        with pytest.raises(ValueError, match=said):
            gelu(wrong)
