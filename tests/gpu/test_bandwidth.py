"""Memory-bound kernels against a plain copy on the same device: `pytest -m gpu -s` prints the shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_parity import require
from torch import Tensor

import fym_kernels

TOKENS, HEADS, DIM = 32760, 12, 128  # Wan 1.3B, 81 frames of 480 x 832
LATENT = (1, 16, 21, 480, 832)  # larger than a real latent: that one is done before a timer sees it
LEAST_SHARE = 0.6


def seconds(call: Callable[[], object]) -> float:
    """Median of 20, after a warm-up."""
    times = []
    for turn in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times += [start.elapsed_time(end) / 1e3] if turn >= 5 else []
    return sorted(times)[len(times) // 2]


def copy_bandwidth() -> float:
    """Bytes per second read and written by a large copy."""
    x = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / seconds(lambda: y.copy_(x))


def random(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_(grad)


# what to call, the leaves of its gradient, and passes over an activation: forward, backward
Problem = tuple[Callable[[], object], tuple[Tensor, ...], int, int]


def gated_residual(backend: str) -> Problem:
    x, y = random(1, TOKENS, HEADS * DIM), random(1, TOKENS, HEADS * DIM)
    gate = torch.randn(1, HEADS * DIM, device="cuda")
    run = fym_kernels.gated_residual
    return lambda: run(x, y, gate, backend=backend), (y,), 3, 2


def modulated_norm(backend: str) -> Problem:
    x, scale = random(1, TOKENS, HEADS * DIM), torch.randn(1, HEADS * DIM, device="cuda")
    run = fym_kernels.modulated_norm
    return lambda: run(x, scale, scale, backend=backend), (x,), 2, 3


def qk_norm_rope(backend: str) -> Problem:
    query, key = (random(1, TOKENS, HEADS, DIM) for _ in range(2))
    weight = torch.ones(HEADS * DIM, device="cuda")
    positions = tuple(torch.arange(n, device="cuda") for n in (21, 30, 52))

    def forward() -> tuple[Tensor, Tensor]:
        return fym_kernels.qk_norm_rope(
            query, key, weight, weight, positions, axes_dim=(44, 42, 42), backend=backend
        )

    return forward, (query, key), 4, 6


def motion_loss(backend: str) -> Problem:
    pred, target = random(*LATENT), random(*LATENT, grad=False)
    run = fym_kernels.motion_loss
    return lambda: run(pred, target, backend=backend), (pred,), 2, 3


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("op", [gated_residual, modulated_norm, qk_norm_rope, motion_loss])
def test_share_of_copy_bandwidth(op: Callable[[str], Problem], backend: str) -> None:
    """Forward, and with backward, on the fewest bytes: inputs read once, outputs written once."""
    require(op.__name__, backend, torch.bfloat16)
    call, leaves, passes, passes_backward = op(backend)
    one_pass, copy = leaves[0].numel() * 2, copy_bandwidth()

    def both() -> None:
        outs = call()
        outs = outs if isinstance(outs, tuple) else (outs,)
        torch.autograd.grad(outs, leaves, outs)

    with torch.no_grad():
        forward = passes * one_pass / seconds(call) / copy
    together = (passes + passes_backward) * one_pass / seconds(both) / copy
    name = f"{op.__name__} {backend}"
    print(f"\n{name}: {forward:.0%}, with backward {together:.0%} of {copy / 1e12:.2f} TB/s")
    assert forward >= LEAST_SHARE
    assert together >= LEAST_SHARE
