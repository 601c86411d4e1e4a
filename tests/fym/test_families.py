"""Wan through our attention: the stock model exactly, adapters only where they belong, all restored."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.errors import UserError
from fym.families import load_family
from fym.families.projections import project
from fym.families.wan_block import WanSelfAttention

T = torch.tensor([400.0])


def noisy(family, frames=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, frames, 4, 6, generator=generator)


def adapter_for(family, heads, *, trained=True, std=0.3, seed=0, targets="qkvo"):
    generator = torch.Generator().manual_seed(seed)
    adapter = HeadLora(
        heads,
        num_heads=family.num_heads,
        head_dim=family.head_dim,
        rank=2,
        alpha=2.0,
        targets=targets,
        generator=generator,
    )
    if trained:
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if name.endswith("lora_B"):
                    parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.fixture(scope="module")
def text(tiny_family):
    return tiny_family.encode_prompts(["a red ball"])


@pytest.mark.parametrize("head_dim", [12, 128])
@torch.no_grad()
def test_our_blocks_equal_the_stock_ones_in_fp32(tiny_wan, head_dim):
    """The same operations in the same order, but for norm2's affine, which rounds once in another place.

    Measured 5e-7 at outputs up to 2, two float32 roundings; also at the explicit positions 0, 1, 2, ...
    """
    family = load_family(str(tiny_wan(head_dim=head_dim)), dtype="float32", device="cpu")
    text = family.encode_prompts(["a red ball"])
    stock = family.predict(noisy(family), T, text)
    with fym_kernels.use_backend("reference"), family.attention() as control:
        torch.testing.assert_close(family.predict(noisy(family), T, text), stock, rtol=0, atol=2e-6)
        control.time_positions = torch.arange(3, dtype=torch.float64)
        torch.testing.assert_close(family.predict(noisy(family), T, text), stock, rtol=0, atol=2e-6)
        control.time_positions = 4.0 * torch.arange(3, dtype=torch.float64)
        assert (family.predict(noisy(family), T, text) - stock).abs().max() > 1e-3


@torch.no_grad()
def test_every_backend_equals_it_to_rounding(tiny_wan):
    """The kernels of this machine: an error of a few fp32 roundings, layer upon layer."""
    family = load_family(str(tiny_wan(head_dim=128)), dtype="float32", device="cpu")
    text = family.encode_prompts(["a red ball"])
    stock = family.predict(noisy(family), T, text)
    with family.attention():
        torch.testing.assert_close(family.predict(noisy(family), T, text), stock, rtol=0, atol=2e-5)


@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_the_stock_processor(tiny_wan, tiny_family, text):
    """Ours rounds less often, so its error against fp32 may not exceed that of the stock one by much."""
    family = load_family(str(tiny_wan()), dtype="bfloat16", device="cpu")
    exact = tiny_family.predict(noisy(family), T, text)
    stock = (family.predict(noisy(family), T, text) - exact).abs().mean()
    with family.attention():
        ours = (family.predict(noisy(family), T, text) - exact).abs().mean()
    assert 0 < ours <= 1.25 * stock


def test_bf16_keeps_rope_norms_and_modulation_in_fp32_and_gives_finite_gradients(tiny_wan):
    family = load_family(str(tiny_wan()), dtype="bfloat16", device="cpu")
    assert family.transformer.rope.freqs_cos.dtype == torch.float32
    assert family.transformer.scale_shift_table.dtype == torch.float32
    assert family.transformer.dtype == torch.bfloat16
    adapter = adapter_for(family, [[0], [1, 2]])
    with family.attention(adapters=[(adapter, 1.0)]):
        family.predict(noisy(family), T, family.encode_prompts(["x"])).square().mean().backward()
    for parameter in adapter.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


@torch.no_grad()
def test_processors_are_restored_object_for_object_also_after_an_error(tiny_family, text):
    before = dict(tiny_family.transformer.attn_processors)
    with contextlib.suppress(RuntimeError), tiny_family.attention():
        inside = tiny_family.transformer.attn_processors
        assert sum(isinstance(p, WanSelfAttention) for p in inside.values()) == tiny_family.num_layers
        assert all(inside[name] is before[name] for name in before if "attn2" in name)
        raise RuntimeError
    after = tiny_family.transformer.attn_processors
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert not tiny_family.transformer.rope._forward_pre_hooks


@torch.no_grad()
def test_adapters_at_their_start_change_nothing_bit_for_bit(tiny_family, text):
    adapters = [(adapter_for(tiny_family, [[0], [0, 1]], trained=False, seed=s), 1.0) for s in (0, 1)]
    with tiny_family.attention():
        base = tiny_family.predict(noisy(tiny_family), T, text)
    with tiny_family.attention(adapters=adapters):
        assert torch.equal(tiny_family.predict(noisy(tiny_family), T, text), base)


def test_after_a_step_inactive_heads_are_exact_before_the_norm_and_the_leak_is_measured(tiny_family, text):
    """One AdamW step: q, k, v of untouched heads keep every bit; the norm lets a little through."""
    family = tiny_family
    adapter = adapter_for(family, [[1], [0, 2]], trained=False)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    with family.attention(adapters=[(adapter, 1.0)]):
        family.predict(noisy(family), T, text).square().mean().backward()
    optimizer.step()
    hidden = torch.randn(1, 18, 36, generator=torch.Generator().manual_seed(3))
    for layer, active in enumerate([[1], [0, 2]]):
        attn = family.transformer.blocks[layer].attn1
        stack = AdapterStack([(adapter, 1.0)])
        rest = [h for h in range(3) if h not in active]
        with torch.no_grad():
            base, ours = project(attn, hidden, AdapterStack(), layer), project(attn, hidden, stack, layer)
        for old, new in zip(base, ours, strict=True):
            old, new = old.unflatten(2, (3, 12)), new.unflatten(2, (3, 12))
            assert torch.equal(old[:, :, rest], new[:, :, rest])
            assert not torch.equal(old[:, :, active], new[:, :, active])
    leaks = family.norm_leak([(adapter, 1.0)], noisy(family), T, text)
    assert all(0 < leak < 0.1 for pair in leaks for leak in pair)
    grown = family.norm_leak([(adapter, 10.0)], noisy(family), T, text)
    assert grown[0][0] > leaks[0][0]


def test_no_leak_where_no_or_every_head_is_touched(tiny_family, text):
    adapter = adapter_for(tiny_family, [[], [0, 1, 2]])
    assert tiny_family.norm_leak([(adapter, 1.0)], noisy(tiny_family), T, text) == [(0.0, 0.0)] * 2


@torch.no_grad()
def test_both_adapters_act_and_their_strengths_count(tiny_family, text):
    """A second adapter must not switch off the first: each contributes, and strength 0 is absence."""
    spatial, temporal = (
        adapter_for(tiny_family, [[0], [1]], seed=1),
        adapter_for(tiny_family, [[1, 2], [0]], seed=2),
    )

    def run(*adapters):
        with tiny_family.attention(adapters=adapters):
            return tiny_family.predict(noisy(tiny_family), T, text)

    both = run((spatial, 1.0), (temporal, 1.0))
    alone = run((temporal, 1.0))
    assert (both - alone).abs().max() > 1e-4
    assert (both - run((spatial, 1.0))).abs().max() > 1e-4
    assert torch.equal(run((spatial, 0.0), (temporal, 1.0)), alone)
    assert (run((spatial, 0.5), (temporal, 1.0)) - both).abs().max() > 1e-5


def test_recomputing_gives_the_same_gradients(tiny_family, text, monkeypatch):
    gradients = []
    for recompute in ("none", "ffn", "block"):
        adapter = adapter_for(tiny_family, [[0], [1]])
        monkeypatch.setattr(tiny_family, "recompute", recompute)
        with tiny_family.attention(adapters=[(adapter, 1.0)]):
            assert tiny_family.transformer.is_gradient_checkpointing == (recompute == "block")
            tiny_family.predict(noisy(tiny_family), T, text).square().mean().backward()
        assert not tiny_family.transformer.is_gradient_checkpointing
        gradients.append([p.grad for p in adapter.parameters()])
    for values in zip(*gradients, strict=True):
        assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_the_whole_transformer_compiles_without_a_graph_break(tiny_family, text):
    """Stage 3 as it is, two adapters on; the compiled forward is the first to see them."""
    transformer = tiny_family.transformer
    spatial, temporal = adapter_for(tiny_family, [[0], [1]]), adapter_for(tiny_family, [[1, 2], [0]], seed=1)
    adapters = [(spatial.requires_grad_(False), 1.0), (temporal, 1.0)]
    with tiny_family.attention(adapters=adapters):
        compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")
        one, other = (
            model(noisy(tiny_family), T, text, return_dict=False)[0] for model in (compiled, transformer)
        )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_base_model_takes_no_gradient(tiny_family, text):
    adapter = adapter_for(tiny_family, [[0], [1]])
    with tiny_family.attention(adapters=[(adapter, 1.0)]):
        tiny_family.predict(noisy(tiny_family), T, text).sum().backward()
    assert all(p.grad is None for p in tiny_family.transformer.parameters())


@torch.no_grad()
def test_classification_sees_query_and_key_of_every_layer(tiny_family, text):
    seen = []
    with tiny_family.attention(on_qk=lambda layer, q, k: seen.append((layer, q.shape, k.shape))):
        tiny_family.predict(noisy(tiny_family), T, text)
    assert seen == [(layer, (1, 18, 3, 12), (1, 18, 3, 12)) for layer in range(2)]


@torch.no_grad()
def test_wrong_number_of_time_positions_is_an_error(tiny_family, text):
    with (
        pytest.raises(ValueError, match="3 latent frames"),
        tiny_family.attention(time_positions=torch.arange(2.0)),
    ):
        tiny_family.predict(noisy(tiny_family), T, text)


def test_latents_round_trip_and_text_are_those_of_the_pipeline(tiny_family, moving_square):
    latents = tiny_family.encode_video(moving_square)
    assert latents.shape == (16, 5, 4, 6) and torch.equal(latents, tiny_family.encode_video(moving_square))
    assert tiny_family.grid(latents) == (5, 2, 3) and tiny_family.tokens(17, 32, 48) == 30
    assert tiny_family.decode_video(latents).shape == moving_square.shape
    theirs = tiny_family.pipeline.encode_prompt(
        "a red ball", do_classifier_free_guidance=False, max_sequence_length=16
    )[0]
    assert torch.equal(tiny_family.encode_prompts(["a red ball", "x"])[:1], theirs)


def test_peft_layers_and_fused_projections_refuse_adapters_and_run_without(tiny_wan):
    from peft import LoraConfig

    family = load_family(str(tiny_wan()), dtype="float32", device="cpu")
    text = family.encode_prompts(["a"])
    adapter = adapter_for(family, [[0], [1]])
    stock = family.predict(noisy(family), T, text)
    family.transformer.fuse_qkv_projections()
    with pytest.raises(UserError, match="fused"), family.attention(adapters=[(adapter, 1.0)]):
        pass
    with family.attention():
        torch.testing.assert_close(family.predict(noisy(family), T, text), stock)
    family.transformer.unfuse_qkv_projections()
    family.transformer.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    with (
        pytest.raises(UserError, match=r"to_q of block 0.*peft"),
        family.attention(adapters=[(adapter, 1.0)]),
    ):
        pass
    stock = family.predict(noisy(family), T, text)
    with family.attention():
        torch.testing.assert_close(family.predict(noisy(family), T, text), stock)


def test_quantised_weights_refuse_adapters(tiny_wan):
    family = load_family(str(tiny_wan()), dtype="float32", device="cpu")
    linear = family.transformer.blocks[1].attn1.to_v
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with (
        pytest.raises(UserError, match=r"to_v of block 1.*float8"),
        family.attention(adapters=[(adapter_for(family, [[0], [1]]), 1.0)]),
    ):
        pass


def test_the_hash_tells_models_apart_and_ignores_where_they_lie(tiny_wan, tiny_family, tmp_path):
    copy = shutil.copytree(tiny_wan(), tmp_path / "elsewhere")
    again = load_family(str(copy))
    assert again.model_hash == tiny_family.model_hash and again.model_id == "elsewhere"
    assert load_family(str(tiny_wan(seed=1))).model_hash != tiny_family.model_hash


def test_defaults_come_from_the_folder_or_are_wans(tiny_wan, tiny_family, tmp_path):
    assert (tiny_family.default_frames, tiny_family.default_height, tiny_family.default_fps) == (17, 32, 8)
    copy = shutil.copytree(tiny_wan(), tmp_path / "plain")
    (copy / "fym.json").unlink()
    plain = load_family(str(copy))
    assert (plain.default_frames, plain.default_height, plain.default_width) == (81, 480, 832)
    (copy / "fym.json").write_text(json.dumps({"frames": 5}))
    with pytest.raises(UserError, match="unknown keys: frames"):
        load_family(str(copy))


def test_every_kind_of_wrong_model_is_named(tiny_wan, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    half = shutil.copytree(tiny_wan(), tmp_path / "half")
    shutil.rmtree(half / "vae")
    broken = shutil.copytree(tiny_wan(), tmp_path / "broken")
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    pickled = (
        shutil.copytree(tiny_wan(), tmp_path / "pickled") / "vae" / "diffusion_pytorch_model.safetensors"
    )
    torch.save(load_file(pickled), pickled.with_suffix(".bin"))
    pickled.unlink()
    for name, message in {
        "empty": "no model_index.json",
        "file": "it is a file",
        "no/such/folder": "no such folder",
        "other": "is a FluxPipeline: only WanPipeline",
        "half": "incomplete: there is no folder vae",
        "broken": "cannot be loaded",
        "pickled": "cannot be loaded: Error no file named diffusion_pytorch_model.safetensors",
    }.items():
        with pytest.raises(UserError, match=message):
            load_family(str(tmp_path / name))


def test_a_hub_id_that_cannot_be_fetched_says_why(monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"somebody/a-model cannot be fetched: no route to host\. .*local folder"
    ):
        load_family("somebody/a-model")


def test_devices_that_are_not_there_are_named(tiny_wan):
    for device, message in (("toaster", "no device"), ("cuda:7", "cannot be used")):
        with pytest.raises(UserError, match=message):
            load_family(str(tiny_wan()), device=device)


def test_sizes_that_do_not_fit_get_the_nearest_that_do(tiny_family):
    tiny_family.check_size(32, 48)
    with pytest.raises(UserError, match="--height 32 --width 64"):
        tiny_family.check_size(33, 60)


def test_a_model_is_loaded_with_a_tiled_vae_where_it_can_be(tiny_wan):
    folder = str(tiny_wan())
    assert not load_family(folder).pipeline.vae.use_tiling
    assert load_family(folder, vae="tiled").pipeline.vae.use_tiling
    with pytest.raises(UserError, match="tile"):
        load_family("embedded", vae="tiled")
