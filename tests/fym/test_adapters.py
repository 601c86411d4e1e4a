"""Head-restricted LoRA: an ordinary LoRA with zero rows, equal to adapters on physically split layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fym_kernels
from fym.adapters import AdapterStack, HeadLora

H, D, R = 4, 6, 3
d = H * D


def make(heads, seed=0, trained=True, **options):
    generator = torch.Generator().manual_seed(seed)
    settings = {"num_heads": H, "head_dim": D, "rank": R, "alpha": 6.0, **options}
    adapter = HeadLora(heads, generator=generator, **settings)
    if trained:
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if name.endswith("lora_B"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.fixture
def layers():
    """q, k, v, o with biases, and tokens (2,5,d)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return {p: nn.Linear(d, d) for p in "qkvo"}, torch.randn(2, 5, d)


def qkv(layers, x, update):
    base = [layers[p] for p in "qkv"]
    return fym_kernels.lora_qkv(
        x,
        tuple(layers[p].weight + update.folded.get(p, 0) for p in "qkv"),
        tuple(linear.bias for linear in base),
        tuple(update.lora_a[p] for p in "qkv"),
        tuple(update.lora_b[p] for p in "qkv"),
        update.heads,
        head_dim=D,
        scale=update.scale,
    )


def out(layers, x, update):
    return fym_kernels.lora_linear(
        x,
        layers["o"].weight + update.folded.get("o", 0),
        layers["o"].bias,
        update.lora_a["o"],
        update.lora_b["o"],
        scale=update.scale,
        active_heads=update.heads,
        head_dim=D,
        side="in",
    )


def test_a_new_adapter_changes_nothing_bit_for_bit(layers):
    linears, x = layers
    stack = AdapterStack([(make([[0, 2]], trained=False), 1.0)])
    for p, y in zip("qkv", qkv(linears, x, stack.qkv(0)), strict=True):
        assert torch.equal(y, linears[p](x))
    assert torch.equal(out(linears, x, stack.out(0)), linears["o"](x))


def test_head_masked_lora_equals_physically_split_layers(layers):
    """Every projection split in two by heads, biases with it, LoRA on one half: the same to 1e-5."""
    linears, x = layers
    active = [1, 3]
    adapter = make([active])
    stack = AdapterStack([(adapter, 1.0)])
    rows = adapter.rows(0)
    rest = torch.tensor([i for i in range(d) if i not in set(rows.tolist())])
    for p, y in zip("qkv", qkv(linears, x, stack.qkv(0)), strict=True):
        pair = adapter.layer(0)[p]
        split = {part: nn.Linear(d, len(index)) for part, index in (("active", rows), ("rest", rest))}
        with torch.no_grad():
            for part, index in (("active", rows), ("rest", rest)):
                split[part].weight.copy_(linears[p].weight[index])
                split[part].bias.copy_(linears[p].bias[index])
        expected = torch.empty_like(y)
        expected[..., rows] = split["active"](x) + adapter.scaling * F.linear(
            F.linear(x, pair.lora_A), pair.lora_B
        )
        expected[..., rest] = split["rest"](x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    pair = adapter.layer(0)["o"]
    weight, bias = linears["o"].weight, linears["o"].bias
    expected = (
        F.linear(x[..., rows], weight[:, rows])
        + F.linear(x[..., rest], weight[:, rest], bias)
        + adapter.scaling * F.linear(F.linear(x[..., rows], pair.lora_A), pair.lora_B)
    )
    torch.testing.assert_close(out(linears, x, stack.out(0)), expected, rtol=1e-5, atol=1e-5)


def test_inactive_heads_keep_their_base_rows_bit_for_bit(layers):
    linears, x = layers
    adapter = make([[1, 3]])
    rest = [i for i in range(d) if i not in set(adapter.rows(0).tolist())]
    for p, y in zip("qkv", qkv(linears, x, AdapterStack([(adapter, 1.0)]).qkv(0)), strict=True):
        assert torch.equal(y[..., rest], linears[p](x)[..., rest])
        assert not torch.equal(y, linears[p](x))


def test_full_size_form_is_the_same_update_and_comes_back(layers):
    linears, x = layers
    adapter = make([[0, 3], [], [1]])
    full = adapter.to_full()
    assert not any(name.startswith("blocks.1.") for name in full)
    y = qkv(linears, x, AdapterStack([(adapter, 1.0)]).qkv(0))[0]
    a, b = full["blocks.0.q.lora_A"], full["blocks.0.q.lora_B"]
    assert a.shape == (R, d) and b.shape == (d, R)
    torch.testing.assert_close(y, linears["q"](x) + adapter.scaling * x @ a.T @ b.T)
    again = make([[0, 3], [], [1]], seed=5)
    again.load_full(full)
    for one, other in zip(adapter.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_update_of_a_foreign_head_is_not_read_as_ours():
    full = make([[0, 3]]).to_full()
    with pytest.raises(ValueError, match="not in its head map"):
        make([[0]]).load_full(full)
    with pytest.raises(ValueError, match="missing"):
        make([[0, 3]]).load_full({})


@pytest.mark.parametrize("heads", [([0, 2], [1, 3]), ([0, 2], [2]), ([1], [1]), ([], [2])])
def test_a_stack_is_the_sum_of_its_adapters(layers, heads):
    """Disjoint, overlapping, equal and empty head groups, each with its own strength and rank."""
    linears, x = layers
    adapters = [(make([heads[0]], seed=1), 1.0), (make([heads[1]], seed=2, rank=5), 0.7)]
    stack = AdapterStack(adapters)
    delta = {p: torch.zeros(d, d) for p in "qkvo"}
    for adapter, scale in adapters:
        full = adapter.to_full()
        for p in "qkvo":
            if f"blocks.0.{p}.lora_A" in full:
                delta[p] += (
                    scale * adapter.scaling * full[f"blocks.0.{p}.lora_B"] @ full[f"blocks.0.{p}.lora_A"]
                )
    for p, y in zip("qkv", qkv(linears, x, stack.qkv(0)), strict=True):
        torch.testing.assert_close(y, linears[p](x) + x @ delta[p].T)
    torch.testing.assert_close(out(linears, x, stack.out(0)), linears["o"](x) + x @ delta["o"].T)


@pytest.mark.parametrize("heads", [([0, 2], [1, 3]), ([0, 2], [2]), ([1], [1]), ([], [2]), ([2], [])])
def test_folded_into_the_weights_frozen_adapters_do_the_same(layers, heads):
    """Values and gradients of a stack whose frozen adapters, with their strength, are part of the weights."""
    linears, x = layers
    frozen = make([heads[0]], seed=1, rank=5).requires_grad_(False), make([[3]], seed=2).requires_grad_(False)
    trained = make([heads[1]], seed=3)
    adapters = [(frozen[0], 0.7), (frozen[1], 1.0), (trained, 1.0)]
    results = []
    for fold in (False, True):
        stack = AdapterStack(adapters, fold=fold)
        outputs = [*qkv(linears, x, stack.qkv(0)), out(linears, x, stack.out(0))]
        parameters = list(trained.parameters())
        gradients = (
            torch.autograd.grad(sum(y.square().sum() for y in outputs), parameters) if parameters else ()
        )
        results.append([*outputs, *gradients])
    if heads[1]:
        assert stack.qkv(0).lora_b["q"].shape[1] == trained.rank
    for stacked, folded in zip(*results, strict=True):
        torch.testing.assert_close(folded, stacked, rtol=1e-5, atol=1e-4)


def test_gradients_reach_the_trainable_adapter_of_a_stack_only(layers):
    linears, x = layers
    frozen, trained = make([[0, 1]], seed=1).requires_grad_(False), make([[2, 3]], seed=2)
    stack = AdapterStack([(frozen, 1.0), (trained, 1.0)])
    (sum(y.sum() for y in qkv(linears, x, stack.qkv(0))) + out(linears, x, stack.out(0)).sum()).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


def test_trained_values_are_used_and_frozen_ones_laid_out_once():
    trained = make([[1]])
    stack = AdapterStack([(trained, 1.0), (make([[2]]).requires_grad_(False), 1.0)])
    before = stack.qkv(0).lora_b["q"].clone()
    with torch.no_grad():
        trained.layer(0)["q"].lora_B.add_(1)
    assert not torch.equal(stack.qkv(0).lora_b["q"], before)
    still = AdapterStack([(make([[1]]).requires_grad_(False), 1.0)])
    assert still.qkv(0) is still.qkv(0)


def test_strength_zero_and_missing_projections_leave_no_update():
    assert AdapterStack([(make([[1]]), 0.0)]).qkv(0) is None
    without_o = AdapterStack([(make([[1]], targets="qkv"), 1.0)])
    assert without_o.qkv(0) is not None and without_o.out(0) is None
    assert AdapterStack([(make([[]]), 1.0)]).qkv(0) is None


def test_parameters_are_counted_compactly():
    adapter = make([[0, 1], [2]])
    one = R * (d + 2 * D) * 3 + R * (2 * D + d)
    two = R * (d + D) * 3 + R * (D + d)
    assert adapter.num_parameters() == one + two


def test_wrong_heads_and_targets_are_refused():
    with pytest.raises(ValueError, match="allowed: 0 to 3"):
        make([[4]])
    with pytest.raises(ValueError, match="targets"):
        make([[0]], targets="qk")
