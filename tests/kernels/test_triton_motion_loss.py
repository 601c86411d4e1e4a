"""The Triton kernel of motion_loss gives the reference's loss and the gradients of both tensors."""

from __future__ import annotations

import pytest
import torch
from triton_parity import (  # noqa: F401
    assert_as_good,
    double,
    in_each_dtype,
    interpreted,
    leaf,
    poisoned_memory,
    randn,
    strided,
)

pytestmark = interpreted()

from fym_kernels import reference  # noqa: E402
from fym_kernels.triton import motion_loss  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "case"),
    in_each_dtype(
        [
            ((2, 2, 5, 3, 7), True, 0.7),
            ((1, 2, 1, 3, 8), False, 1.0),
            ((1, 1, 18, 1, 3), False, 2.0),
            ((2, 2, 2, 1, 1), True, 0.0),
        ]
    ),
)
def test_loss_and_gradients(dtype: torch.dtype, case: tuple[tuple[int, ...], bool, float]) -> None:
    shape, weighted, motion_weight = case
    pred, target = (randn(*shape, dtype=dtype, seed=seed) for seed in range(2))
    weight = randn(shape[0], dtype=torch.float32, seed=2).abs() if weighted else None
    exact_in, naive_in = double(pred, target, weight), leaf(pred, target, weight)
    exact = reference.motion_loss(*exact_in, motion_weight=motion_weight)
    naive = reference.motion_loss(*naive_in, motion_weight=motion_weight)
    (exact * 0.5).backward()
    (naive * 0.5).backward()

    pred, target = strided(pred), target.transpose(0, 1).contiguous().transpose(0, 1)
    loss, saved = motion_loss.forward(pred, target, weight, motion_weight=motion_weight)
    assert_as_good(loss, naive, exact, "loss")
    half = torch.tensor(0.5, dtype=loss.dtype)
    for i, side in enumerate(("pred", "target")):
        actual = motion_loss.backward(half, pred, target, saved, side=side)
        assert_as_good(actual, naive_in[i].grad, exact_in[i].grad, side)
    if weighted:
        grad_weight = (half * saved.error / shape[0]).to(weight.dtype)
        assert_as_good(grad_weight, naive_in[2].grad, exact_in[2].grad, "weight")


def test_equal_frames_have_no_direction() -> None:
    pred = randn(1, 2, 1, 3, 3, dtype=torch.float64, seed=0).expand(-1, -1, 4, -1, -1)
    target = randn(1, 2, 4, 3, 3, dtype=torch.float64, seed=1)
    inputs = double(pred, target)
    exact = reference.motion_loss(*inputs)
    exact.backward()
    loss, saved = motion_loss.forward(pred, target, None, motion_weight=1.0)
    torch.testing.assert_close(loss, exact.detach())
    for i, side in enumerate(("pred", "target")):
        actual = motion_loss.backward(torch.ones_like(loss), pred, target, saved, side=side)
        torch.testing.assert_close(actual, inputs[i].grad)
