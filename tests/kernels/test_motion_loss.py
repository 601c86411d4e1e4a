"""motion_loss: equal to its definition, with exact gradients, and finite where frames do not move."""

from __future__ import annotations

import pytest
import torch
import truth

from fym_kernels import motion_loss

SHAPE = (2, 3, 5, 4, 7)


@pytest.mark.parametrize("motion_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0]).double()], ids=["even", "weighted"])
def test_equals_the_definition(weight, motion_weight: float) -> None:
    pred, target = torch.randn(2, *SHAPE).double()
    got = motion_loss(pred, target, weight, motion_weight=motion_weight)
    wanted = truth.motion(pred, target, weight, motion_weight)
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    pred, target = torch.randn(2, *SHAPE).to(dtype)
    got = motion_loss(pred, target)
    assert got.dtype == torch.float32
    wanted = truth.motion(pred.double(), target.double(), None, 1.0)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


def test_one_frame_has_no_motion() -> None:
    pred, target = torch.randn(2, 2, 3, 1, 4, 4).double()
    got = motion_loss(pred, target, motion_weight=5.0)
    torch.testing.assert_close(got, (pred - target).square().mean())


def test_the_motion_term_sees_direction_not_size_or_look() -> None:
    """Moving the same way, twice as far, from another picture: the term is 0; the other way round: 2."""
    target = torch.randn(SHAPE).double()
    picture = torch.randn(2, 3, 1, 4, 7).double()
    for factor, wanted in ((2.0, 0.0), (-1.0, 2.0)):
        pred = picture + factor * target
        term = motion_loss(pred, target) - motion_loss(pred, target, motion_weight=0.0)
        torch.testing.assert_close(term, torch.tensor(wanted).double(), rtol=0, atol=1e-12)


def test_the_loss_weight_leaves_the_motion_term_alone() -> None:
    pred, target = torch.randn(2, *SHAPE).double()
    term = motion_loss(pred, target, torch.zeros(2).double())
    torch.testing.assert_close(term, motion_loss(pred, target) - (pred - target).square().mean())


def test_gradients() -> None:
    pred, target = (torch.randn(2, 2, 3, 2, 2).double().requires_grad_() for _ in range(2))
    weight = torch.tensor([0.4, 1.6]).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, t, w: motion_loss(p, t, w, motion_weight=0.7), (pred, target, weight)
    )


def test_still_frames_give_a_finite_gradient() -> None:
    """Two equal frames have no direction: the cosine counts as 0 and pulls nowhere."""
    pred, target = torch.randn(2, *SHAPE)
    pred[:, :, 1] = pred[:, :, 0]
    target[:, :, 3] = target[:, :, 2]
    pred.requires_grad_()
    loss = motion_loss(pred, target)
    loss.backward()
    assert loss.isfinite()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


def test_strided_views() -> None:
    pred, target = torch.randn(2, 2, 5, 3, 4, 14).double()
    views = [x.transpose(1, 2)[..., ::2] for x in (pred, target)]
    torch.testing.assert_close(motion_loss(*views), motion_loss(*(v.contiguous() for v in views)))


BAD = {
    "pred must have 5 dimensions": (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)),
    "target must have shape": (torch.zeros(SHAPE), torch.zeros(2, 3, 4, 4, 7)),
    r"weight must have shape \(2,\)": (torch.zeros(SHAPE), torch.zeros(SHAPE), torch.ones(3)),
    "pred must not be empty": (torch.zeros(0, 3, 5, 4, 7), torch.zeros(0, 3, 5, 4, 7)),
}


@pytest.mark.parametrize(("message", "arguments"), BAD.items(), ids=BAD.keys())
def test_bad_input_names_the_argument(message: str, arguments) -> None:
    with pytest.raises(ValueError, match=message):
        motion_loss(*arguments)
