"""The C++ modulated_norm: forward and backward in every dtype, layout and instruction set."""

from __future__ import annotations

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, modulated_norm

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
TOKENS = 133  # more than two parts of the modulation's sums, and no whole number of them
PER_TOKEN = {"per sample": (False, False), "per token": (True, True), "scale per token only": (True, False)}


def make(dtype, per_token=(False, False), *, modulation=None, width=37, tokens=TOKENS, batch=2):
    x = 3 * torch.randn(batch, tokens, width) + 2
    scale, shift = (torch.randn(batch, *((tokens,) if per else ()), width) for per in per_token)
    kind = modulation or dtype
    return [t.requires_grad_() for t in (x.to(dtype), scale.to(kind), shift.to(kind))]


def definition(grad, x, scale, shift):
    """Output and gradients, in the dtype of x."""
    leaves = [t.detach().requires_grad_() for t in (x, scale, shift)]
    centred = leaves[0] - leaves[0].mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    gain, offset = ((v if v.ndim == 3 else v[:, None]).to(x.dtype) for v in leaves[1:])
    out = normed * (1 + gain) + offset
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("per_token", PER_TOKEN.values(), ids=PER_TOKEN.keys())
@pytest.mark.parametrize("modulation", [torch.float32, None], ids=["float32 modulation", "modulation like x"])
@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.usefixtures("isa")
def test_forward_and_backward(dtype, modulation, per_token) -> None:
    tensors = make(dtype, per_token, modulation=modulation)
    before = [t.detach().clone() for t in tensors]
    out = modulated_norm(*tensors, backend="cpu")
    grad = torch.randn(out.shape).to(dtype)
    got = torch.autograd.grad(out, tensors, grad)
    assert [g.dtype for g in got] == [t.dtype for t in tensors]
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
    inputs = (grad, *(t.detach() for t in tensors))
    truth.assert_as_good_as_naive((out.detach(), *got), definition, inputs, dtype)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    tokens=st.integers(0, 70),
    width=st.integers(1, 150),
    per_token=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_reference(batch, tokens, width, per_token, seed) -> None:
    torch.manual_seed(seed)
    tensors = make(torch.float32, per_token, width=width, tokens=tokens, batch=batch)
    grad = torch.randn(tensors[0].shape)
    results = []
    for backend in ("cpu", "reference"):
        out = modulated_norm(*tensors, backend=backend, eps=1e-2)  # a row of one value has no spread
        results.append((out, *torch.autograd.grad(out, tensors, grad)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=5e-5, atol=5e-5)


def test_no_channels() -> None:
    x, modulation = torch.zeros(2, 3, 0), torch.zeros(2, 0)
    assert modulated_norm(x, modulation, modulation, backend="cpu").shape == x.shape


def test_views_are_read_in_place_and_odd_ones_copied() -> None:
    buffer = torch.randn(2, 20, 90)
    gate = torch.randn(2, 20)
    for view in (
        buffer[:, ::3, 5:25],
        buffer.transpose(1, 2)[:, 7:12],
        buffer[:1].expand(2, 20, 90)[..., :20],
    ):
        x = view.clone().requires_grad_()
        out = modulated_norm(view, gate[:, :20], gate, backend="cpu")
        assert torch.equal(out, modulated_norm(view.contiguous(), gate, gate, backend="cpu"))
        modulated_norm(x, gate, gate, backend="cpu").sum().backward()  # its gradient has stride 0
        wanted = definition(torch.ones(x.shape), x, gate, gate)[1]
        torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("isa")
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    tensors, grad = make(torch.bfloat16, width=200), torch.randn(2, TOKENS, 200).bfloat16()

    def run():
        out = modulated_norm(*tensors, backend="cpu")
        return out.detach(), *torch.autograd.grad(out, tensors, grad)

    truth.assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_each_gradient_alone_equals_all_together(needs) -> None:
    tensors, grad = make(torch.float32), torch.randn(2, TOKENS, 37)
    together = torch.autograd.grad(modulated_norm(*tensors, backend="cpu"), tensors, grad)
    alone = [t.detach().requires_grad_(bool(n)) for t, n in zip(tensors, needs, strict=True)]
    wanted = [i for i in range(3) if needs[i]]
    got = torch.autograd.grad(modulated_norm(*alone, backend="cpu"), [alone[i] for i in wanted], grad)
    assert all(torch.equal(g, together[i]) for g, i in zip(got, wanted, strict=True))


@pytest.mark.parametrize("per_token", PER_TOKEN.values(), ids=PER_TOKEN.keys())
def test_opcheck(per_token) -> None:
    """Schema, fake kernels, autograd registration and tracing agree with the real kernels."""
    tensors = make(torch.bfloat16, per_token, modulation=torch.float32, tokens=5)
    ops = torch.ops.fym_kernels
    torch.library.opcheck(ops.modulated_norm.default, (*tensors, 1e-6))
    x, scale, shift = (t.detach() for t in tensors)
    _, mean, rstd = ops.modulated_norm(x, scale, shift, 1e-6)
    for wanted in ((True, True, True), (True, False, False), (False, True, False)):
        torch.library.opcheck(
            ops.modulated_norm_backward.default, (x, x, scale, mean, rstd, shift.ndim == 3, *wanted)
        )


def test_compiled_with_its_gradient_it_equals_eager() -> None:
    tensors = make(torch.float32)

    def step(x, scale, shift):
        return modulated_norm(x, scale, shift, backend="cpu").square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, wanted = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, step))
    torch.testing.assert_close(got, wanted)


def test_the_op_itself_refuses_shapes_it_cannot_run() -> None:
    x = torch.zeros(2, 5, 7)
    for scale, shift in ((x[:, :4], x[:, 0]), (x[:, 0], x[0]), (x[:1, 0], x[:, 0])):
        with pytest.raises(RuntimeError, match="must be"):
            torch.ops.fym_kernels.modulated_norm(x, scale, shift, 1e-6)
