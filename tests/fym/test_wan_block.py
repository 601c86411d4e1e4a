"""One Wan block through our forward: stock's numbers and gradients, fewer bytes kept, no graph break, and the
fused path only where it is right."""

import copy
import logging

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from peft import LoraConfig, inject_adapter_in_model

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.errors import UserError
from fym.families import lean, load_family
from fym.families.base import AttentionControl
from fym.families.projections import report_fallbacks
from fym.families.wan_block import WanBlockForward, WanSelfAttention, why_stock

HEADS, DIM, RANK = 3, 128, 4
WIDTH = HEADS * DIM
FFN = WIDTH * 35 // 6  # 8960 / 1536, the proportions of Wan 2.1 1.3B
AXES = (44, 42, 42)
GRID = (2, 6, 8)
TOKENS, TEXT = 96, 5  # 512 text tokens to 9360


def make_block(dtype=torch.float32):
    """Random frozen weights; those that diffusers keeps in float32 when it loads a model are."""
    torch.manual_seed(0)
    block = WanTransformerBlock(WIDTH, FFN, HEADS, "rms_norm_across_heads", True, 1e-6)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    block.to(dtype).requires_grad_(False).eval()
    for name in ("norm1", "norm2", "norm3"):
        getattr(block, name).float()
    block.scale_shift_table.data = block.scale_shift_table.data.float()
    return block


def make_adapter(heads=tuple(range(HEADS))):
    generator = torch.Generator().manual_seed(3)
    adapter = HeadLora(
        [list(heads)], num_heads=HEADS, head_dim=DIM, rank=RANK, alpha=8.0, generator=generator
    )
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter


def make_inputs(dtype=torch.float32, per_token=False):
    generator = torch.Generator().manual_seed(1)
    shape = (1, TOKENS, 6, WIDTH) if per_token else (1, 6, WIDTH)
    x, text, temb = (
        torch.randn(s, generator=generator).to(torch.bfloat16).to(dtype)  # the same numbers in every dtype
        for s in ((1, TOKENS, WIDTH), (1, TEXT, WIDTH), shape)
    )
    rope = WanRotaryPosEmbed(DIM, (1, 2, 2), 32)(torch.empty(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]))
    return x.requires_grad_(), text, temb, rope


def install(block, adapter=None, *, recompute_ffn=False):
    control = AttentionControl(AdapterStack([(adapter, 1.0)] if adapter else ()), grid=GRID)
    block.attn1.set_processor(WanSelfAttention(0, control, AXES, block.attn1.processor, block.attn1))
    assert why_stock(block) == ""
    block.forward = WanBlockForward(block, recompute_ffn=recompute_ffn)
    return block


def with_peft(block, adapter, dtype=torch.float32, **options):
    """The stock block with the whole-width adapter as diffusers and PEFT would run it."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=8,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        exclude_modules=".*attn2.*",
        **options,
    )
    inject_adapter_in_model(config, block, adapter_name="x")
    full = adapter.to_full() if adapter else None
    for letter, name in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True):
        layer = block.attn1.get_submodule(name)
        for part, modules in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            weight = modules["x"].weight
            if full:
                weight.data = full[f"blocks.0.{letter}.{part}"].clone()
            weight.data = weight.data.to(dtype)
    return block


def outputs_and_gradients(block, inputs, parameters=(), cotangents=1):
    """[output, gradient of x, of each parameter], those of several random cotangents side by side."""
    out = block(*inputs)
    sought = [inputs[0], *parameters]
    runs = []
    for seed in range(cotangents):
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
        runs.append(torch.autograd.grad(out, sought, cotangent, retain_graph=True))
    return [out.detach(), *(torch.stack(gradients) for gradients in zip(*runs, strict=True))]


def factors_of(adapter):
    pairs = adapter.layer(0)
    return [getattr(pairs[p], name) for p in "qkvo" for name in ("lora_A", "lora_B")]


def factors_of_peft(block):
    layers = [block.attn1.get_submodule(name) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    return [getattr(layer, name)["x"].weight for layer in layers for name in ("lora_A", "lora_B")]


def truth(per_token, dtype, cotangents):
    """Stock block and PEFT in float64, from weights and inputs rounded to `dtype`."""
    block = with_peft(make_block(dtype).double(), make_adapter(), torch.float64)
    x, text, temb, rope = make_inputs(torch.float64, per_token)
    with pytest.MonkeyPatch.context() as patch:  # the block casts to float32 by this method
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        inputs = x, text, temb, tuple(table.double() for table in rope)
        return outputs_and_gradients(block, inputs, factors_of_peft(block), cotangents)


@pytest.mark.parametrize("per_token", [False, True], ids=["one timestep", "timestep per token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute ffn"])
def test_output_and_gradients_are_as_exact_as_those_of_diffusers_and_peft(dtype, per_token, recompute):
    """Error against float64 at most 1.5 times that of the stock block and PEFT in the same dtype: the output,
    the input's gradient and every adapter's; in float32 tight in itself.

    Random attention is nearly uniform, so the value's gradient is nearly the same at all tokens and its
    rounding does not average out over them: errors are taken over six cotangents.
    """
    exact = truth(per_token, dtype, 6)
    stock_block = with_peft(make_block(dtype), make_adapter(), dtype)
    inputs = make_inputs(dtype, per_token)
    stock = outputs_and_gradients(stock_block, inputs, factors_of_peft(stock_block), 6)
    adapter = make_adapter()
    block = install(make_block(dtype), adapter, recompute_ffn=recompute)
    ours = outputs_and_gradients(block, inputs, factors_of(adapter), 6)
    for result, rough, true in zip(ours, stock, exact, strict=True):
        error, allowed = ((v.double() - true).norm() / true.norm() for v in (result, rough))
        assert error <= 1.5 * allowed
        if dtype == torch.float32:
            assert error < 2e-6


def test_heads_without_adapter_and_models_without_any_give_the_stock_block():
    stock = outputs_and_gradients(make_block(), make_inputs())
    for adapter in (None, make_adapter([1])):
        if adapter:
            for pair in adapter.layer(0).values():
                pair.lora_B.data.zero_()
        ours = outputs_and_gradients(install(make_block(), adapter), make_inputs())
        for one, other in zip(ours, stock, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def kept_bytes(block, inputs, parameters):
    """Bytes of the distinct storages that the graph keeps for the backward pass, but for parameters."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor  # held, so that no other storage gets the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(*inputs)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.skipif(
    str(fym_kernels.backend.selected("modulated_norm", torch.empty(1))) == "reference"
    or fym_kernels.backend.selected("lora_qkv", torch.empty(1)) == "reference",
    reason="the reference keeps float32 copies; this is about the native kernels",
)
def test_a_block_keeps_the_bytes_it_should():
    """Must hold against 24.9 d values of 2 bytes per token, diffusers with PEFT at the model's true width.

    Ours: x of three norms, query, key, value and output of self-attention, query and output of
    cross-attention, GELU's input of 5.83 d: 14.83 d, and floats per head, rank and token.
    """
    dtype = torch.bfloat16
    stock = with_peft(make_block(dtype), make_adapter(), dtype)
    naive = kept_bytes(stock, make_inputs(dtype), stock.parameters())
    unit = TOKENS * WIDTH * 2
    assert naive >= 24.9 * unit
    for recompute, must in ((False, 0.62), (True, 0.38)):
        adapter = make_adapter()
        block = install(make_block(dtype), adapter, recompute_ffn=recompute)
        ours = kept_bytes(block, make_inputs(dtype), [*block.parameters(), *adapter.parameters()])
        assert ours <= must * 24.9 * unit, f"{ours / unit:.2f} d"


@pytest.mark.parametrize(
    ("backend", "recompute"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
)
def test_compiled_without_a_graph_break(backend, recompute):
    """fullgraph=True is an error at any graph break; forward and backward equal the eager block's."""
    adapter = make_adapter([0, 2])
    block = install(make_block(), adapter, recompute_ffn=recompute)
    eager = outputs_and_gradients(block, make_inputs(), factors_of(adapter))
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for one, other in zip(
        outputs_and_gradients(compiled, make_inputs(), factors_of(adapter)), eager, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_norms_are_rebuilt_only_where_rounding_allows():
    """A pair of channels of which one is tiny cannot be told apart after the rotation has mixed them."""
    even = torch.ones(8)
    assert lean.rebuildable(even, rotated=True)
    tiny = even.clone()
    tiny[3] = 1e-3
    assert not lean.rebuildable(tiny, rotated=True) and lean.rebuildable(tiny, rotated=False)
    assert not lean.rebuildable(even.clone().fill_(0), rotated=False)
    block = make_block()
    block.attn1.norm_q.weight.data[3] = 1e-6
    stock = outputs_and_gradients(block, make_inputs())
    ours = outputs_and_gradients(install(block), make_inputs())
    assert not block.attn1.processor.lean
    for one, other in zip(ours, stock, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# --- the fused path only where it is right ---


def test_a_plain_peft_lora_goes_through_the_kernels_with_the_same_result(monkeypatch):
    block = with_peft(make_block(), make_adapter())
    factors = factors_of_peft(block)
    stock = outputs_and_gradients(block, make_inputs(), factors)
    calls = []
    original = fym_kernels.lora_linear
    monkeypatch.setattr(fym_kernels, "lora_linear", lambda *a, **k: calls.append(1) or original(*a, **k))
    for one, other in zip(outputs_and_gradients(install(block), make_inputs(), factors), stock, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    assert calls


def merge(layer):
    layer.merge()


def disable(layer):
    layer.enable_adapters(False)


def second(layer):
    layer.update_layer("y", RANK, lora_alpha=8, config=LoraConfig(r=RANK))
    layer.set_adapter(["x", "y"])


ODD_LORAS = {
    "merged": ({}, merge),
    "disabled": ({}, disable),
    "dropout": ({"lora_dropout": 0.5}, None),
    "Dora": ({"use_dora": True}, None),
    "2 LoRAs are active": ({}, second),
}


@pytest.mark.parametrize("reason", list(ODD_LORAS))
def test_an_odd_peft_lora_is_called_not_fused_and_told_in_one_line(reason, caplog):
    """Same numbers as the stock block, whatever PEFT does in its layer."""
    options, change = ODD_LORAS[reason]
    block = with_peft(make_block(), make_adapter(), **options).eval()
    layers = [block.attn1.get_submodule(name) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    for layer in layers:
        if change:
            change(layer)
    with caplog.at_level(logging.WARNING, "fym"):
        report_fallbacks([block.attn1, block.attn1])
    assert len(caplog.records) == 1 and reason.lower() in caplog.records[0].message.lower()
    with torch.no_grad():
        stock = block(*make_inputs())
        ours = install(block)(*make_inputs())
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


@torch.no_grad()
def test_fused_projections_are_called_and_told_in_one_line(tiny_wan, caplog):
    family = load_family(str(tiny_wan()), dtype="float32", device="cpu")
    x, step, text = torch.randn(1, 16, 3, 4, 6), torch.tensor([400.0]), family.encode_prompts(["x"])
    stock = family.predict(x, step, text)
    family.transformer.fuse_qkv_projections()
    with caplog.at_level(logging.WARNING, "fym"), family.attention():
        torch.testing.assert_close(family.predict(x, step, text), stock, rtol=0, atol=1e-5)
    assert len(caplog.records) == 1
    assert "own linear layers instead of fused ones: q, k and v are fused" in caplog.records[0].message
    adapter = HeadLora([[0], [1]], num_heads=3, head_dim=12, rank=2, alpha=2.0)
    with pytest.raises(UserError, match="fused"), family.attention(adapters=[(adapter, 1.0)]):
        pass


@torch.no_grad()
def test_layerwise_casting_keeps_working_and_refuses_adapters(tiny_wan):
    family = load_family(str(tiny_wan()), dtype="float32", device="cpu")
    family.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    x, step, text = torch.randn(1, 16, 3, 4, 6), torch.tensor([400.0]), family.encode_prompts(["x"])
    stock = family.predict(x, step, text)
    with family.attention():
        torch.testing.assert_close(family.predict(x, step, text), stock, rtol=0, atol=1e-5)
    adapter = HeadLora([[0], [1]], num_heads=3, head_dim=12, rank=2, alpha=2.0)
    with pytest.raises(UserError, match="to_q of block 0"), family.attention(adapters=[(adapter, 1.0)]):
        pass


@torch.no_grad()
def test_blocks_with_a_forward_of_another_library_keep_it_and_it_is_told(tiny_wan, caplog):
    family = load_family(str(tiny_wan()), dtype="float32", device="cpu")
    x, step, text = torch.randn(1, 16, 3, 4, 6), torch.tensor([400.0]), family.encode_prompts(["x"])
    stock = family.predict(x, step, text)
    block = family.transformer.blocks[1]
    calls, original = [], block.forward
    theirs = block.forward = lambda *args: calls.append(1) or original(*args)
    with caplog.at_level(logging.WARNING, "fym"), family.attention():
        torch.testing.assert_close(family.predict(x, step, text), stock, rtol=0, atol=1e-5)
    assert calls and vars(block)["forward"] is theirs
    assert len(caplog.records) == 1 and "replaced the blocks' forward" in caplog.records[0].message


@torch.no_grad()
def test_the_blocks_get_their_own_forward_back_also_when_nested(tiny_family):
    blocks = tiny_family.transformer.blocks
    with tiny_family.attention():
        outer = [vars(block)["forward"] for block in blocks]
        with tiny_family.attention():
            assert all(vars(b)["forward"] is not f for b, f in zip(blocks, outer, strict=True))
        assert all(vars(b)["forward"] is f for b, f in zip(blocks, outer, strict=True))
    assert not any("forward" in vars(block) for block in blocks)


def test_tuning_gives_the_same_losses_on_every_backend(tiny_family, moving_square):
    """Steps of AdamW through the whole model: native kernels and reference stay together to rounding, also in
    what the tuned model then predicts."""
    family, text = tiny_family, tiny_family.encode_prompts(["a square"])
    latents = family.encode_video(moving_square)[None]
    results = {}
    for backend in ("reference", "auto"):
        generator = torch.Generator().manual_seed(0)
        adapter = HeadLora(
            [[0, 2], [1]], num_heads=3, head_dim=12, rank=2, alpha=2.0, generator=copy.copy(generator)
        )
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        losses = []
        with fym_kernels.use_backend(backend), family.attention(adapters=[(adapter, 1.0)]):
            for step in range(6):
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
                sigma = 0.1 + 0.15 * step
                pred = family.predict(
                    (1 - sigma) * latents + sigma * noise, torch.tensor([1000 * sigma]), text
                )
                loss = fym_kernels.motion_loss(pred, noise - latents)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            with torch.no_grad():
                final = family.predict(latents, torch.tensor([500.0]), text)
        results[backend] = losses, final
    (losses, final), (native_losses, native_final) = results["reference"], results["auto"]
    assert losses[-1] != losses[0]
    # AdamW divides by the gradient's size, so a rounding moves a step by 1e-5 of itself; measured 2e-6.
    assert native_losses == pytest.approx(losses, rel=2e-5)
    torch.testing.assert_close(native_final, final, rtol=0, atol=2e-4)
