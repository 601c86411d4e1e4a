"""Tensors that span more than 2^31 elements: the Triton kernels reach the far end of every input."""

from __future__ import annotations

import pytest
import torch
from interpreter import interpreted
from torch import Tensor

pytestmark = interpreted()

import fym_kernels  # noqa: E402

FAR = 2**31 + 16  # elements between the samples: 4 GB of address space, of which a few KB are touched


@pytest.fixture(scope="module")
def storage() -> Tensor:
    return torch.empty(FAR + 4096, dtype=torch.float16)


def far_apart(storage: Tensor, x: Tensor) -> Tensor:
    view = storage.as_strided(x.shape, (FAR, *x.stride()[1:]))
    view.copy_(x)
    return view


def test_far_samples_give_the_same_bits_as_near_ones(storage: Tensor) -> None:
    heads, clip = torch.randn(2, 2, 1, 8).half(), torch.randn(2, 1, 2, 1, 3).half()
    flat, gate, square = heads.flatten(2), torch.ones(2, 8), torch.ones(8, 8).half()
    kind, positions = torch.tensor([2], dtype=torch.int8), tuple(torch.arange(n) for n in (2, 1, 1))
    factors = torch.ones(3, 8), torch.ones(8, 3)
    runs = (
        (flat, lambda x: fym_kernels.gated_residual(x, x, gate)),
        (flat, fym_kernels.gelu),
        (flat, lambda x: fym_kernels.modulated_norm(x, gate, gate)),
        (flat, lambda x: fym_kernels.lora_linear(x, square, None, *factors, scale=1.0)),
        (heads, lambda x: fym_kernels.qk_norm_rope(x, x, None, None, positions, axes_dim=(4, 2, 2))[0]),
        (heads, lambda x: fym_kernels.head_scores(x, x, (2, 1, 1)).square),
        (heads, lambda x: fym_kernels.head_attention(x, x, x, kind, (2, 1, 1))),
        (clip, lambda x: fym_kernels.motion_loss(x, x * 2)),
    )
    with fym_kernels.use_backend("triton"):
        for x, run in runs:
            assert torch.equal(run(far_apart(storage, x)), run(x))
