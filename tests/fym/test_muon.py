"""Muon equals torch's in all but speed, and its iteration equals the plain one."""

from __future__ import annotations

import pytest
import torch

from fym.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal


def plainly(matrices: torch.Tensor) -> torch.Tensor:
    """The iteration as it is published, on the matrices themselves."""
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(5, 32, 192), (3, 7, 7), (2, 96, 32), (1, 1, 24)])
def test_the_iteration_on_inner_products_is_the_published_one(shape):
    """In float32, also with rows that differ by six orders (worst of five seeds 1.3e-4, bfloat16: 4e-3)."""
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-6, 0, shape[-2])[:, None]
    expected = plainly(matrices.double())
    [found] = orthogonal([matrices])
    assert (found - expected).abs().max() < 4e-4


def test_singular_values_come_near_one():
    torch.manual_seed(1)
    for found in orthogonal([torch.randn(4, 32, 96), torch.randn(2, 48, 32), torch.randn(3, 8, 8)]):
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonal([torch.zeros(1, 2, 3)])[0].any()


def test_updates_are_those_of_torch_within_its_bfloat16():
    """Ten steps over matrices of three shapes; torch's iteration rounds to 8 bits."""
    torch.manual_seed(2)
    shapes = [(32, 192), (192, 32), (32, 192), (8, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    start = [p.detach().clone() for p in ours]
    for _ in range(10):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - before).norm()


def test_without_a_gradient_nothing_changes():
    still, moved = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizer = Muon([still, moved], lr=0.1, weight_decay=0.5)
    moved.grad = torch.randn(2, 3)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 3)) and not torch.equal(moved, torch.ones(2, 3))
    assert set(optimizer.state) == {moved}


def test_only_matrices():
    with pytest.raises(ValueError, match=r"matrices.*\(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)
