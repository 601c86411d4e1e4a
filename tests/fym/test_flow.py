"""The flow-matching schedule: its numbers, its weights, its ends."""

import math

import pytest
import torch

from fym.flow import FlowMatching


def test_shift_five_puts_the_first_training_level_at_0_9998():
    assert FlowMatching().sigma(torch.tensor(0.999)).item() == pytest.approx(5 * 0.999 / (1 + 4 * 0.999))
    assert FlowMatching(shift=1.0).sigma(torch.tensor(0.3)).item() == pytest.approx(0.3)


def test_noising_and_target_are_consistent():
    """x_t - sigma v is the clean sample, at every noise level."""
    flow, generator = FlowMatching(), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 8, 3, 2, 4, 4, generator=generator)
    sigma = flow.draw(8, generator)
    noisy, target = flow.add_noise(clean, noise, sigma), flow.target(clean, noise, sigma)
    torch.testing.assert_close(noisy - sigma.view(-1, 1, 1, 1, 1) * target, clean)


def test_bell_weights_are_zero_at_pure_noise_and_have_mean_one_over_the_training_levels():
    flow = FlowMatching()
    levels = flow.sigma(1 - torch.arange(1000, dtype=torch.float64) / 1000)
    weights = flow.weight(levels)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.min().item() == pytest.approx(0.0, abs=1e-12)
    assert flow.weight(torch.tensor(0.5)).item() == pytest.approx(2.08, abs=0.01)
    assert (flow.weight(levels, "none") == 1).all()


def test_both_noise_distributions_stay_inside_and_logit_normal_is_centred():
    flow, generator = FlowMatching(shift=1.0), torch.Generator().manual_seed(0)
    for noise in ("uniform", "logit_normal"):
        sigma = flow.draw(4000, generator, noise)
        assert sigma.min() > 0 and sigma.max() < 1
        assert sigma.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 4000))


@pytest.mark.parametrize("noise", ["uniform", "logit_normal"])
def test_a_lowest_noise_level_is_kept_and_reached(noise):
    flow = FlowMatching(shift=3.0)
    sigma = flow.draw(4000, torch.Generator().manual_seed(0), noise, lowest=0.8)
    assert 0.8 <= float(sigma.min()) < 0.82 and 0.97 < float(sigma.max()) < 1
    assert torch.equal(
        flow.draw(9, torch.Generator().manual_seed(1), noise, lowest=0.0),
        flow.draw(9, torch.Generator().manual_seed(1), noise),
    )


@pytest.mark.parametrize(
    "call", [lambda f: f.draw(1, torch.Generator(), "x"), lambda f: f.weight(torch.ones(1), "x")]
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match="allowed"):
        call(FlowMatching())
