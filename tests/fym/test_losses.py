"""The losses: zero at the target, blind to what they should be, not to the direction of motion."""

import math

import pytest
import torch

from fym.losses import debiased_term, flow_term, logged_terms, motion_term, tuning_loss


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 4, 5, 3, 3, generator=generator).unbind()


ONES = torch.ones(2)


def test_every_loss_is_zero_at_the_target(pair):
    target = pair[0]
    loss = tuning_loss(target, target, ONES, motion_weight=1.0, anchor=2)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_sum_is_what_the_log_says(pair):
    weight = torch.tensor([0.5, 1.7])
    flow, motion = logged_terms(*pair, weight)
    loss = tuning_loss(*pair, weight, motion_weight=0.3)
    assert loss.item() == pytest.approx(flow + 0.3 * motion, rel=1e-6)


def test_reversed_motion_is_the_worst_and_scale_does_not_matter(pair):
    """Signed differences: absolute values would call a reversed motion perfect."""
    target = pair[0]
    assert motion_term(-target, target).item() == pytest.approx(2, abs=1e-6)
    assert motion_term(3 * target, target).item() == pytest.approx(0, abs=1e-6)
    assert motion_term(target + 7, target).item() == pytest.approx(0, abs=1e-4)


def test_two_latent_frames_have_a_motion_loss(pair):
    """The cosine is taken over C,h,w per frame pair; over time it would be identically 0 here."""
    pred, target = (x[:, :, :2] for x in pair)
    assert motion_term(pred, target).item() > 0.1


def test_one_latent_frame_has_none(pair):
    pred, target = (x[:, :, :1] for x in pair)
    loss = tuning_loss(pred, target, ONES, motion_weight=1.0)
    torch.testing.assert_close(loss, flow_term(pred, target, ONES), rtol=1e-6, atol=0)
    assert motion_term(pred, target).item() == 0


def test_the_debiased_term_weighs_what_all_frames_share_least(pair):
    """An error common to all frames counts (sqrt(2) - 1)^2, one of a frame's own counts about 2."""
    target = pair[0]
    common = debiased_term(target + 1, target, ONES, anchor=0).item()
    assert common == pytest.approx((math.sqrt(2) - 1) ** 2, rel=1e-5)
    own = target.clone()
    own[:, :, 3] += 1
    assert debiased_term(own, target, ONES, anchor=0).item() == pytest.approx(2 / 5, rel=1e-5)


def test_gradients_reach_the_prediction(pair):
    pred = pair[0].clone().requires_grad_()
    tuning_loss(pred, pair[1], ONES, motion_weight=1.0, anchor=1).backward()
    assert pred.grad is not None and pred.grad.isfinite().all() and pred.grad.abs().sum() > 0
