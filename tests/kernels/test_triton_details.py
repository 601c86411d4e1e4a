"""What no comparison of whole ops shows: edge values, what is left alone, sums over many parts."""

from __future__ import annotations

import cases
import pytest
import torch
from interpreter import interpreted, poisoned_memory  # noqa: F401

pytestmark = interpreted()

import fym_kernels  # noqa: E402
from fym_kernels import reference  # noqa: E402
from fym_kernels.triton import head_attention, low_rank  # noqa: E402


def test_equal_frames_have_no_direction() -> None:
    pred = torch.randn(1, 2, 1, 3, 3, dtype=torch.float64).expand(-1, -1, 4, -1, -1).clone().requires_grad_()
    target = torch.randn(1, 2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    losses = fym_kernels.motion_loss(pred, target, backend="triton"), reference.motion_loss(pred, target)
    grads = [torch.autograd.grad(loss, (pred, target)) for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


def test_inactive_heads_are_left_alone() -> None:
    (x, weights, biases, a, b, active), options = cases.lora_qkv(
        torch.float32, heads=4, head_dim=8, active=(1, 3), rank=3
    )
    outs = fym_kernels.lora_qkv(x, weights, biases, a, b, active, **options, backend="triton")
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        base = torch.nn.functional.linear(x, weight, bias)
        heads, base_heads = (t.unflatten(-1, (4, 8)) for t in (out, base))
        assert torch.equal(heads[:, :, [0, 2]], base_heads[:, :, [0, 2]])
        assert not torch.equal(heads[:, :, [1, 3]], base_heads[:, :, [1, 3]])


def test_three_bfloat16_terms_hold_a_float32() -> None:
    """The split `_dot` makes of a float32 beside bfloat16, which the interpreter cannot multiply."""
    x = torch.randn(10000)
    high = x.bfloat16()
    middle = (x - high.float()).bfloat16()
    low = (x - high.float() - middle.float()).bfloat16()
    kept = high.double() + middle.double() + low.double()
    assert ((kept - x.double()).abs() <= 2.0**-24 * x.double().abs()).all()


def test_partial_sums_over_many_splits() -> None:
    x, s = torch.randn(1, 300, 24, dtype=torch.float64), torch.randn(300, 3, dtype=torch.float64)
    columns = low_rank.columns_of(24, None, None, x)
    actual = low_rank.reduce(x, columns, s, 2.0, torch.float64, rank_first=True)
    torch.testing.assert_close(actual, 2 * s.T @ x[0])


def test_logsumexp_of_a_full_head() -> None:
    q, k = torch.randn(2, 1, 21, 1, 8, dtype=torch.float64)
    kind = torch.zeros(1, dtype=torch.int8)
    _, lse = head_attention.forward(q, k, k, kind, (3, 7, 1), 0, 0, False, 0.5)
    torch.testing.assert_close(lse[0, 0], (q[0, :, 0] @ k[0, :, 0].T * 0.5).logsumexp(1))


def test_a_band_over_everything_holds_all_the_mass() -> None:
    query = torch.randn(1, 6, 1, 8, dtype=torch.float64)
    scores = fym_kernels.head_scores(query, query, (3, 2, 1), band=100.0, backend="triton")
    torch.testing.assert_close(scores.spatial, torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(scores.temporal, torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
def test_empty(shape: tuple[int, int, int]) -> None:
    x = torch.ones(shape, requires_grad=True)
    modulation = torch.zeros(shape[0], shape[2], requires_grad=True)
    for out in (
        fym_kernels.modulated_norm(x, modulation, modulation, backend="triton"),
        fym_kernels.gated_residual(x, x, modulation, backend="triton"),
        fym_kernels.gelu(x, backend="triton"),
        fym_kernels.lora_linear(
            x, torch.ones(5, 8), None, torch.ones(2, 8), torch.ones(5, 2), scale=1.0, backend="triton"
        ),
        fym_kernels.qk_norm_rope(
            *(x.unsqueeze(-1).expand(*shape, 2) for _ in range(2)),
            None, None, (torch.arange(0), torch.arange(1), torch.arange(1)),
            axes_dim=(2, 0, 0), backend="triton",
        )[0],
    ):  # fmt: skip
        grads = torch.autograd.grad(out.sum(), (x, modulation), allow_unused=True)
        assert out.shape[:2] == shape[:2]
        assert grads[0].shape == shape
        assert grads[1] is None or torch.equal(grads[1], torch.zeros_like(modulation))
