"""lora_qkv and lora_linear: equal to merged weights, silent where a head is not active, differentiable."""

from __future__ import annotations

import pytest
import torch
import truth

from fym_kernels import lora_linear, lora_qkv

HEADS, HEAD_DIM, RANK, SCALE = 5, 6, 3, 0.7
WIDTH = HEADS * HEAD_DIM
ACTIVE = {"some": [0, 3, 4], "one": [2], "all": [0, 1, 2, 3, 4], "none": []}


def make(active: list[int], dtype=torch.float64, biased: bool = True):
    x = torch.randn(2, 7, WIDTH).to(dtype)
    weights = tuple((torch.randn(WIDTH, WIDTH) / WIDTH**0.5).to(dtype) for _ in range(3))
    biases = tuple(torch.randn(WIDTH).to(dtype) if biased else None for _ in range(3))
    lora_a = tuple(torch.randn(RANK, WIDTH).to(dtype) / WIDTH**0.5 for _ in range(3))
    lora_b = tuple(torch.randn(len(active) * HEAD_DIM, RANK).to(dtype) for _ in range(3))
    return x, weights, biases, lora_a, lora_b, torch.tensor(active, dtype=torch.int64)


def merged(x, weights, biases, lora_a, lora_b, heads):
    return tuple(
        truth.lora_out(x, weights[i], biases[i], lora_a[i], lora_b[i], heads, HEAD_DIM, SCALE)
        for i in range(3)
    )


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("active", ACTIVE.values(), ids=ACTIVE.keys())
def test_qkv_equals_merged_weights(active: list[int], biased: bool) -> None:
    inputs = make(active, biased=biased)
    got = lora_qkv(*inputs, head_dim=HEAD_DIM, scale=SCALE)
    torch.testing.assert_close(got, merged(*inputs), rtol=0, atol=1e-13)
    if not biased:
        x, weights, _, lora_a, lora_b, heads = inputs
        got = lora_qkv(x, weights, None, lora_a, lora_b, heads, head_dim=HEAD_DIM, scale=SCALE)
        torch.testing.assert_close(got, merged(*inputs), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_qkv_in_low_precision(dtype: torch.dtype) -> None:
    inputs = make([1, 2], dtype)
    got = lora_qkv(*inputs, head_dim=HEAD_DIM, scale=SCALE)
    truth.assert_as_good_as_naive(got, merged, inputs, dtype)


def test_inactive_heads_equal_the_base_layer_bit_for_bit() -> None:
    active = [0, 3]
    x, weights, biases, lora_a, lora_b, heads = make(active, torch.float32)
    outputs = lora_qkv(x, weights, biases, lora_a, lora_b, heads, head_dim=HEAD_DIM, scale=SCALE)
    for y, weight, bias in zip(outputs, weights, biases, strict=True):
        base = torch.nn.functional.linear(x, weight, bias).unflatten(2, (HEADS, HEAD_DIM))
        y = y.unflatten(2, (HEADS, HEAD_DIM))
        for head in range(HEADS):
            assert torch.equal(y[:, :, head], base[:, :, head]) == (head not in active)


def test_float32_factors_beside_a_bfloat16_base() -> None:
    """The update is computed in float32 and rounded once; gradients arrive in float32."""
    x, weights, biases, _, _, heads = make([1, 4], torch.bfloat16)
    _, _, _, lora_a, lora_b, _ = make([1, 4], torch.float32)
    factors = [t.requires_grad_() for t in (*lora_a, *lora_b)]
    outputs = lora_qkv(x, weights, biases, lora_a, lora_b, heads, head_dim=HEAD_DIM, scale=SCALE)
    exact = merged(*truth.cast((x, weights, biases, lora_a, lora_b, heads), torch.float64))
    for y, wanted in zip(outputs, exact, strict=True):
        assert y.dtype == torch.bfloat16
        # two roundings of values below max|base| + max|update|
        assert (y.double() - wanted).abs().max() <= 2**-8 * 2 * wanted.abs().max()
    sum(y.float().square().sum() for y in outputs).backward()
    assert all(f.grad is not None and f.grad.dtype == torch.float32 for f in factors)


@pytest.mark.parametrize("side", ["out", "in"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("active", ACTIVE.values(), ids=ACTIVE.keys())
def test_linear_equals_merged_weights(active: list[int], biased: bool, side: str) -> None:
    """Also for a layer that is not square."""
    other = 17
    d_in, d_out = (other, WIDTH) if side == "out" else (WIDTH, other)
    x, weight = torch.randn(2, 7, d_in).double(), torch.randn(d_out, d_in).double()
    bias = torch.randn(d_out).double() if biased else None
    used = len(active) * HEAD_DIM
    lora_a = torch.randn(RANK, d_in if side == "out" else used).double()
    lora_b = torch.randn(used if side == "out" else d_out, RANK).double()
    heads = torch.tensor(active, dtype=torch.int64)
    options = {"scale": SCALE, "active_heads": heads, "head_dim": HEAD_DIM, "side": side}
    got = lora_linear(x, weight, bias, lora_a, lora_b, **options)
    definition = truth.lora_out if side == "out" else truth.lora_in
    wanted = definition(x, weight, bias, lora_a, lora_b, heads, HEAD_DIM, SCALE)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_linear_without_heads_is_ordinary_lora() -> None:
    x, weight, bias = torch.randn(2, 7, 5).double(), torch.randn(9, 5).double(), torch.randn(9).double()
    lora_a, lora_b = torch.randn(2, 5).double(), torch.randn(9, 2).double()
    wanted = x @ (weight + SCALE * lora_b @ lora_a).T + bias
    got = lora_linear(x, weight, bias, lora_a, lora_b, scale=SCALE)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_linear_in_low_precision(dtype: torch.dtype) -> None:
    x, weights, biases, _, _, heads = make([1, 2], dtype)
    lora_a, lora_b = torch.randn(RANK, 2 * HEAD_DIM).to(dtype), torch.randn(WIDTH, RANK).to(dtype)
    options = {"scale": SCALE, "active_heads": heads, "head_dim": HEAD_DIM, "side": "in"}
    got = lora_linear(x, weights[0], biases[0], lora_a, lora_b, **options)

    def definition(x, weight, bias, lora_a, lora_b):
        return truth.lora_in(x, weight, bias, lora_a, lora_b, heads, HEAD_DIM, SCALE)

    truth.assert_as_good_as_naive(got, definition, (x, weights[0], biases[0], lora_a, lora_b), dtype)


def test_gradients_of_input_and_factors() -> None:
    x, weights, biases, lora_a, lora_b, heads = make([0, 3])
    tensors = [t.requires_grad_() for t in (x[:1, :2].clone(), *lora_a, *lora_b)]

    def run(x, *factors):
        return lora_qkv(x, weights, biases, factors[:3], factors[3:], heads, head_dim=HEAD_DIM, scale=SCALE)

    assert torch.autograd.gradcheck(run, tensors)

    o_factors = torch.randn(RANK, 2 * HEAD_DIM).double(), torch.randn(WIDTH, RANK).double()

    def run_o(x, a, b):
        options = {"scale": SCALE, "active_heads": heads, "head_dim": HEAD_DIM, "side": "in"}
        return lora_linear(x, weights[0], None, a, b, **options)

    assert torch.autograd.gradcheck(run_o, [tensors[0], *(t.requires_grad_() for t in o_factors)])


def test_strided_input_and_empty_sizes() -> None:
    x, *rest = make([1])
    wide = torch.cat((x, x), dim=2)[:, ::2, :WIDTH]
    got = lora_qkv(wide, *rest, head_dim=HEAD_DIM, scale=SCALE)
    wanted = lora_qkv(wide.contiguous(), *rest, head_dim=HEAD_DIM, scale=SCALE)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14)
    for empty in (x[:0], x[:, :0]):
        for y in lora_qkv(empty, *rest, head_dim=HEAD_DIM, scale=SCALE):
            assert y.shape == empty.shape


def changed(position: int, value):
    inputs = list(make([0, 3], torch.float32))
    inputs[position] = value
    return inputs


BAD = {
    "weights must be three tensors": changed(1, (torch.zeros(WIDTH, WIDTH),) * 2),
    r"weights\[0\] must have shape \(d_out, 30\)": changed(1, (torch.zeros(WIDTH, 7),) * 3),
    r"weights\[0\] must have the dtype of x": changed(1, (torch.zeros(WIDTH, WIDTH).half(),) * 3),
    r"biases\[0\] must have shape": changed(2, (torch.zeros(7),) * 3),
    r"lora_a\[0\] must have shape \(r, 30\)": changed(3, (torch.zeros(RANK, 7),) * 3),
    r"lora_a\[0\] must be float32 or wider": changed(3, (torch.zeros(RANK, WIDTH).half(),) * 3),
    r"lora_b\[0\] must have shape \(12, 3\)": changed(4, (torch.zeros(WIDTH, RANK),) * 3),
    "active_heads must be sorted and unique": changed(5, torch.tensor([3, 0])),
    "active_heads must lie in 0..4": changed(5, torch.tensor([0, 5])),
    "active_heads must be a 1-D int64": changed(5, torch.tensor([0, 3], dtype=torch.int32)),
    "x must have 3 dimensions": changed(0, torch.zeros(7, WIDTH)),
}


@pytest.mark.parametrize(("message", "inputs"), BAD.items(), ids=BAD.keys())
def test_bad_input_names_the_argument(message: str, inputs) -> None:
    with pytest.raises(ValueError, match=message):
        lora_qkv(*inputs, head_dim=HEAD_DIM, scale=SCALE)


def test_bad_options_of_linear() -> None:
    x, weight = torch.zeros(1, 2, WIDTH), torch.zeros(WIDTH, WIDTH)
    a, b, heads = torch.zeros(RANK, WIDTH), torch.zeros(WIDTH, RANK), torch.tensor([0])
    with pytest.raises(ValueError, match="side must be 'out' or 'in'"):
        lora_linear(x, weight, None, a, b, scale=1.0, side="left")
    with pytest.raises(ValueError, match="head_dim is needed"):
        lora_linear(x, weight, None, a, b, scale=1.0, active_heads=heads)
    with pytest.raises(ValueError, match="head_dim must divide"):
        lora_linear(x, weight, None, a, b, scale=1.0, active_heads=heads, head_dim=7)
