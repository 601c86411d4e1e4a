"""Tensors that span more than 2^31 elements: the Triton kernels reach the far end of every input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_parity import interpreted, randn

pytestmark = interpreted()

from fym_kernels.triton import (  # noqa: E402
    gated_residual,
    head_attention,
    head_scores,
    low_rank,
    modulated_norm,
    motion_loss,
    qk_norm_rope,
)

FAR = 2**31 + 16  # elements between the samples: 4 GB of address space, of which a few KB are touched


@pytest.fixture(scope="module")
def storage() -> Tensor:
    return torch.empty(FAR + 4096, dtype=torch.float16)


def far_apart(storage: Tensor, x: Tensor) -> Tensor:
    view = storage.as_strided(x.shape, (FAR, *x.stride()[1:]))
    view.copy_(x)
    return view


def test_far_samples_give_the_same_bits_as_near_ones(storage: Tensor) -> None:
    heads = randn(2, 2, 1, 8, dtype=torch.float16, seed=0)
    flat, gate = heads.flatten(2), torch.ones(2, 8)
    clip = randn(2, 1, 2, 1, 3, dtype=torch.float16, seed=1)
    kind = torch.tensor([2], dtype=torch.int8)
    positions = (torch.arange(2), torch.arange(1), torch.arange(1))
    rope = {"axes_dim": (4, 2, 2), "theta": 9.0, "eps": 1e-6, "norm": "per_head", "rotate_from": 0}

    def shrink(x: Tensor) -> Tensor:
        s = torch.empty(4, 3)
        low_rank.shrink(x, low_rank.columns_of(8, None, None, x), torch.ones(8, 3), s, 1.0)
        return s

    runs = (
        (flat, lambda x: gated_residual.forward(x, x, gate)),
        (flat, lambda x: modulated_norm.forward(x, gate, gate, eps=1e-6)[0]),
        (flat, shrink),
        (
            heads,
            lambda x: qk_norm_rope.forward(x, x, None, None, positions, interleaved=True, **rope)[0][0],
        ),
        (heads, lambda x: head_scores.forward(x, x, (2, 1, 1))[0]),
        (heads, lambda x: head_attention.forward(x, x, x, kind, (2, 1, 1))[0]),
        (clip, lambda x: motion_loss.forward(x, x * 2, None, motion_weight=1.0)[0]),
    )
    for x, run in runs:
        assert torch.equal(run(far_apart(storage, x)), run(x))
