"""Memory-bound kernels against a plain copy on the same device: `pytest -m gpu -s` prints the shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_parity import native
from torch import Tensor

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


def gated_residual(run):  # type: ignore[no-untyped-def]
    x, y = random(1, TOKENS, HEADS * DIM), random(1, TOKENS, HEADS * DIM)
    gate = torch.randn(1, HEADS * DIM, device="cuda")
    return lambda: run(x, y, gate), (y,), 3, 2


def modulated_norm(run):  # type: ignore[no-untyped-def]
    x, scale = random(1, TOKENS, HEADS * DIM), torch.randn(1, HEADS * DIM, device="cuda")
    return lambda: run(x, scale, scale), (x,), 2, 3


def qk_norm_rope(run):  # type: ignore[no-untyped-def]
    query, key = (random(1, TOKENS, HEADS, DIM) for _ in range(2))
    weight = torch.ones(HEADS * DIM, device="cuda")
    positions = tuple(torch.arange(n, device="cuda") for n in (21, 30, 52))
    options = {"axes_dim": (44, 42, 42), "theta": 1e4, "eps": 1e-6, "norm": "across_heads", "rotate_from": 0}

    def forward():  # type: ignore[no-untyped-def]
        return run(query, key, weight, weight, positions, interleaved=True, **options)

    return forward, (query, key), 4, 6


def motion_loss(run):  # type: ignore[no-untyped-def]
    pred, target = random(*LATENT), random(*LATENT, grad=False)
    return lambda: run(pred, target, motion_weight=1.0), (pred,), 2, 3


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("op", [gated_residual, modulated_norm, qk_norm_rope, motion_loss])
def test_share_of_copy_bandwidth(op, backend: str) -> None:  # type: ignore[no-untyped-def]
    """Forward, and with backward, on the fewest bytes: inputs read once, outputs written once."""
    call, leaves, passes, passes_backward = op(native(op.__name__, backend, torch.bfloat16))
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
