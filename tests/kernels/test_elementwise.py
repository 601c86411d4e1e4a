"""modulated_norm and gated_residual: equal to their definitions, for views and low precision too."""

from __future__ import annotations

import pytest
import torch
import truth

from fym_kernels import gated_residual, modulated_norm

SHAPE = (2, 5, 37)  # an odd row length
GATES = {"one per sample": (2, 37), "one per token": SHAPE}


@pytest.mark.parametrize("gate_shape", GATES.values(), ids=GATES.keys())
def test_modulated_norm_equals_the_definition(gate_shape) -> None:
    x, scale, shift = torch.randn(*SHAPE).double(), *torch.randn(2, *gate_shape).double()
    torch.testing.assert_close(
        modulated_norm(x, scale, shift), truth.modulated(x, scale, shift), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.parametrize("gate_shape", GATES.values(), ids=GATES.keys())
def test_modulated_norm_in_low_precision(gate_shape, dtype: torch.dtype) -> None:
    inputs = (torch.randn(*SHAPE).to(dtype), *torch.randn(2, *gate_shape).to(dtype))
    truth.assert_as_good_as_naive(modulated_norm(*inputs), truth.modulated, inputs, dtype)


def test_modulated_norm_equals_the_blocks_of_wan_bit_for_bit() -> None:
    """diffusers: norm1(hidden.float()) * (1 + scale) + shift, with scale and shift (B,1,d)."""
    x, scale, shift = torch.randn(*SHAPE), torch.randn(2, 1, 37), torch.randn(2, 1, 37)
    norm = torch.nn.LayerNorm(37, eps=1e-6, elementwise_affine=False)
    wanted = norm(x) * (1 + scale) + shift
    assert torch.equal(modulated_norm(x, scale[:, 0], shift[:, 0], backend="reference"), wanted)


def test_modulated_norm_gradients() -> None:
    tensors = torch.randn(2, 3, 5).double(), torch.randn(2, 5).double(), torch.randn(2, 3, 5).double()
    assert torch.autograd.gradcheck(modulated_norm, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("gate_shape", GATES.values(), ids=GATES.keys())
def test_gated_residual_equals_the_definition(gate_shape) -> None:
    x, y, gate = torch.randn(*SHAPE).double(), torch.randn(*SHAPE).double(), torch.randn(*gate_shape).double()
    torch.testing.assert_close(gated_residual(x, y, gate), truth.gated(x, y, gate), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["reference", None])
def test_gated_residual_in_low_precision(backend, dtype: torch.dtype) -> None:
    inputs = torch.randn(*SHAPE).to(dtype), torch.randn(*SHAPE).to(dtype), torch.randn(2, 37).to(dtype)
    truth.assert_as_good_as_naive(gated_residual(*inputs, backend=backend), truth.gated, inputs, dtype)


def test_gated_residual_gradients() -> None:
    for gate_shape in ((2, 5), (2, 3, 5)):
        tensors = (
            torch.randn(2, 3, 5).double(),
            torch.randn(2, 3, 5).double(),
            torch.randn(gate_shape).double(),
        )
        assert torch.autograd.gradcheck(gated_residual, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("op", [modulated_norm, gated_residual])
def test_views_and_empty_sizes(op) -> None:
    """Every second token of a wider buffer, a transposed one, an expanded gate; no sample, no token."""
    wide = torch.randn(2, 10, 50)
    x, y = wide[:, ::2, 3:40], wide.transpose(1, 2)[:, 5:10, :].expand(2, 5, 10)[..., :7]
    gate = torch.randn(1, 37).expand(2, 37)
    second = x if op is gated_residual else gate
    wanted = op(x.contiguous(), second.contiguous(), gate.contiguous())
    assert torch.equal(op(x, second, gate), wanted)
    gate = torch.randn(2, 7)
    second = y if op is gated_residual else gate
    assert torch.equal(op(y, second, gate), op(y.contiguous(), second.contiguous(), gate))
    for batch, tokens in ((0, 5), (2, 0)):
        x, gate = torch.randn(batch, tokens, 7), torch.randn(batch, 7)
        assert op(x, x if op is gated_residual else gate, gate).shape == x.shape


BAD = {
    "x must have 3 dimensions": (gated_residual, (torch.zeros(5, 7), torch.zeros(5, 7), torch.zeros(7))),
    "y must have shape": (gated_residual, (torch.zeros(2, 5, 7), torch.zeros(2, 5, 6), torch.zeros(2, 7))),
    "y must have the dtype of x": (
        gated_residual,
        (torch.zeros(2, 5, 7), torch.zeros(2, 5, 7).half(), torch.zeros(2, 7)),
    ),
    r"gate must have shape \(2, 7\) or \(2, 5, 7\), got \(2, 1, 7\)": (
        gated_residual,
        (torch.zeros(2, 5, 7), torch.zeros(2, 5, 7), torch.zeros(2, 1, 7)),
    ),
    "x must be a tensor, got list": (gated_residual, ([1.0], torch.zeros(2, 5, 7), torch.zeros(2, 7))),
    "scale must have shape": (modulated_norm, (torch.zeros(2, 5, 7), torch.zeros(7), torch.zeros(2, 7))),
    "shift must be float32": (
        modulated_norm,
        (torch.zeros(2, 5, 7), torch.zeros(2, 7), torch.zeros(2, 7, dtype=torch.int32)),
    ),
    "shift is on meta": (
        modulated_norm,
        (torch.zeros(2, 5, 7), torch.zeros(2, 7), torch.zeros(2, 7, device="meta")),
    ),
}


@pytest.mark.parametrize(("message", "call"), BAD.items(), ids=BAD.keys())
def test_bad_input_names_the_argument(message: str, call) -> None:
    op, arguments = call
    with pytest.raises(ValueError, match=message):
        op(*arguments)
