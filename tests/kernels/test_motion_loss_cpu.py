"""The C++ motion_loss: the loss and both gradients in every dtype, layout and instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, motion_loss

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
SHAPE = (2, 3, 5, 9, 7)
BLOCKS = (1, 2, 3, 65, 127)  # frames of two blocks of pixels, the second one odd


def make(shape, dtypes=(torch.float32, torch.float32)):
    return [torch.randn(shape).to(dtype).requires_grad_() for dtype in dtypes]


def definition(pred, target, weight):
    """Loss and gradients, in the dtype of pred."""
    leaves = [t.detach().requires_grad_() for t in (pred, target)]
    loss = truth.motion(*leaves, weight, 0.7)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("shape", [SHAPE, BLOCKS, (1, 2, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.usefixtures("isa")
def test_forward_and_backward(shape, dtype: torch.dtype) -> None:
    pred, target = make(shape, (dtype, dtype))
    weight = torch.rand(shape[0]).to(dtype)
    before = pred.detach().clone(), target.detach().clone()
    loss = motion_loss(pred, target, weight, motion_weight=0.7, backend="cpu")
    got = torch.autograd.grad(loss, (pred, target))
    assert loss.dtype == torch.float32 and [g.dtype for g in got] == [dtype, dtype]
    assert torch.equal(pred, before[0]) and torch.equal(target, before[1])
    inputs = (pred.detach(), target.detach(), weight)
    truth.assert_as_good_as_naive((loss.detach(), *got), definition, inputs, dtype)


@pytest.mark.parametrize("dtypes", itertools.permutations(truth.LOW_DTYPES, 2), ids=str)
def test_two_dtypes_are_read_as_they_are(dtypes) -> None:
    pred, target = make(SHAPE, dtypes)
    got = torch.autograd.grad(motion_loss(pred, target, backend="cpu"), (pred, target))
    exact = pred.detach().double().requires_grad_(), target.detach().double().requires_grad_()
    wanted = torch.autograd.grad(motion_loss(*exact), exact)
    for g, w, dtype in zip(got, wanted, dtypes, strict=True):
        assert g.dtype == dtype
        # one rounding to the dtype of the result, a few of float32 on the way
        eps = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
        assert (g.double() - w).norm() <= eps * w.norm()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 3, 6, 9, 9))),
    weighted=st.booleans(),
    motion_weight=st.sampled_from([0.0, 1.0, 2.5]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_reference(shape, weighted, motion_weight, seed) -> None:
    torch.manual_seed(seed)
    leaves = make(shape)
    weight = torch.rand(shape[0]) if weighted else None
    results = []
    for backend in ("cpu", "reference"):
        loss = motion_loss(*leaves, weight, motion_weight=motion_weight, backend=backend)
        results.append((loss, *torch.autograd.grad(1.5 * loss, leaves)))
    for got, wanted in zip(*results, strict=True):
        # frames of one pixel make the cosine jump between -1 and 1: its gradient is 0 up to rounding
        torch.testing.assert_close(
            got, wanted, rtol=1e-4, atol=1e-4 * max(1.0, wanted.detach().abs().max().item())
        )


def test_views_with_dense_frames_are_read_in_place_and_others_copied() -> None:
    base, target = torch.randn(2, 5, 3, 8, 9), torch.randn(2, 3, 10, 8, 9)
    for pred, other in (
        (base.transpose(1, 2), target[:, :, ::2]),
        (base.transpose(1, 2)[..., ::2], target[:, :, :5, :, 1:6]),
        (base.transpose(1, 2).transpose(3, 4), target[:, :1, :5].expand(2, 3, 5, 8, 9).transpose(3, 4)),
    ):
        views = [t.detach().requires_grad_() for t in (pred, other)]
        dense = [t.detach().contiguous().requires_grad_() for t in (pred, other)]
        losses = [motion_loss(*pair, backend="cpu") for pair in (views, dense)]
        assert torch.equal(*losses)
        for got, wanted in zip(
            torch.autograd.grad(losses[0], views), torch.autograd.grad(losses[1], dense), strict=True
        ):
            assert torch.equal(got, wanted)


@pytest.mark.usefixtures("isa")
def test_still_frames_pull_nowhere() -> None:
    pred, target = make(SHAPE)
    with torch.no_grad():
        pred[:, :, 1] = pred[:, :, 0]
        target[:, :, 3] = target[:, :, 2]
    results = []
    for backend in ("cpu", "reference"):
        loss = motion_loss(pred, target, torch.zeros(2), backend=backend)
        results.append((loss, *torch.autograd.grad(loss, (pred, target))))
    for got, wanted in zip(*results, strict=True):
        assert got.isfinite().all()
        # a pair that stands still on one side has a gradient of about 1 / smallest norm on that side
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * wanted.detach().abs().max().item())


@pytest.mark.usefixtures("isa")
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    leaves = make((2, 4, 3, 65, 127))

    def run():
        loss = motion_loss(*leaves, backend="cpu")
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    truth.assert_same_bits_for_any_threads(run)


def test_a_frozen_target_costs_no_gradient_and_a_weight_with_one_goes_to_the_reference() -> None:
    pred, target = make(SHAPE)
    (alone,) = torch.autograd.grad(motion_loss(pred, target.detach(), backend="cpu"), pred)
    together = torch.autograd.grad(motion_loss(pred, target, backend="cpu"), (pred, target))
    assert torch.equal(alone, together[0])
    weight = torch.rand(2).requires_grad_()
    (grad,) = torch.autograd.grad(motion_loss(pred, target, weight, backend="cpu"), weight)
    torch.testing.assert_close(grad, (pred - target).square().flatten(1).mean(1).detach() / 2)


def test_opcheck() -> None:
    """Schema, fake kernels, autograd registration and tracing agree with the real kernels."""
    ops = torch.ops.fym_kernels
    pred, target = make(SHAPE, (torch.bfloat16, torch.float32))
    torch.library.opcheck(ops.motion_loss.default, (pred, target, torch.rand(2), 0.7))
    p, t = pred.detach(), target.detach()
    numbers = ops.motion_loss(p, t, None, 0.7)[1:]
    for side in ("pred", "target"):
        torch.library.opcheck(ops.motion_loss_backward.default, (torch.ones(()), p, t, *numbers, side))


def test_compiled_with_its_gradient_it_equals_eager() -> None:
    leaves = make(SHAPE)

    def step(pred, target):
        return 2 * motion_loss(pred, target, backend="cpu")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, wanted = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step))
    torch.testing.assert_close(got, wanted)


def test_the_op_itself_refuses_what_it_cannot_run() -> None:
    x, op = torch.zeros(SHAPE), torch.ops.fym_kernels.motion_loss
    for arguments in ((x[0], x, None), (x, x[:, :2], None), (x[:0], x[:0], None), (x, x, torch.ones(3))):
        with pytest.raises(RuntimeError, match="must"):
            op(*arguments, 1.0)
    numbers = op(x, x, None, 1.0)[1:]
    with pytest.raises(RuntimeError, match="side must be"):
        torch.ops.fym_kernels.motion_loss_backward(torch.ones(()), x, x, *numbers, "both")
