"""The published number, to the letter and with its defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_motion import pan, tracks, zoom

from fym.motionbench.metrics.fidelity_legacy import legacy


def as_published(generated: np.ndarray, reference: np.ndarray) -> float:
    """The formula, one track pair and one frame pair at a time, in float64."""
    best = []
    for n, one in enumerate(generated.astype(np.float64)):
        row = []
        for m, other in enumerate(reference.astype(np.float64)):
            cosines = [
                np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
                for a, b in zip(np.diff(one, axis=0), np.diff(other, axis=0), strict=True)
            ]
            row.append(np.mean(cosines) - (n == m))
        best.append(max(row))
    return float(np.mean(best))


def test_it_is_the_published_formula():
    """Random walks: the same value as the formula written out, to float32 rounding of 24 terms."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 9, 25, 2)).cumsum(axis=2).astype(np.float32)
    bound = 24 * float(np.finfo(np.float32).eps)
    assert legacy(first, second) == pytest.approx(as_published(first, second), abs=bound)
    assert legacy(first, first) == pytest.approx(as_published(first, first), abs=bound)


def test_it_is_the_published_tensor_code():
    """The same steps in PyTorch, as the published evaluators have them, on float32 tracks."""
    first, second = (torch.randn(2, 12, 17, 2, generator=torch.Generator().manual_seed(1))).cumsum(2)
    step_a, step_b = (x[:, 1:] - x[:, :-1] for x in (first, second))
    step_a, step_b = (d / d.norm(dim=-1, keepdim=True) for d in (step_a, step_b))
    similarity = torch.einsum("ntc,mtc->nmt", step_a, step_b).mean(dim=-1)
    expected = (similarity - torch.eye(12)).max(dim=1).values.mean().item()
    got = legacy(first.numpy(), second.numpy())
    assert got == pytest.approx(expected, abs=16 * float(np.finfo(np.float32).eps))


def test_its_known_defects():
    """A reversed zoom and five times the speed are perfect; different tracks against themselves are not."""
    grow, shrink = tracks(zoom(0.03)).points, tracks(zoom(-0.03)).points
    assert legacy(grow, shrink) > 0.99
    assert legacy(tracks(pan(5)).points, tracks(pan(1)).points) == pytest.approx(1, abs=1e-5)
    walks = np.random.default_rng(0).normal(size=(9, 25, 2)).cumsum(axis=1).astype(np.float32)
    assert legacy(walks, walks) < 0.6


def test_a_still_track_counts_zero_where_the_published_code_has_nan():
    """0/0 does not spread over the whole score."""
    still, moving = tracks(pan(0)).points, tracks(pan(1)).points
    assert legacy(still, moving) == 0
