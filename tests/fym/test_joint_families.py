"""HunyuanVideo and CogVideoX through our processors: the stock models' outputs, adapters, all restored."""

import contextlib

import pytest
import torch

import fym_kernels
from fym.adapters import AdapterStack, HeadLora
from fym.families import cogvideox, hunyuan_video
from fym.families.base import AttentionControl
from fym.families.cogvideox import CogVideoXAttention
from fym.families.hunyuan_video import HunyuanVideoAttention

STEP = torch.tensor([400.0])
# Measured 5e-7 at outputs of about 1: a few float32 roundings in each of the two layers.
ROUNDING = 3e-6


def scrambled(model):
    """Biases and norm weights are random too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2, generator=generator)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.requires_grad_(False).eval()


def hunyuan():
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    return scrambled(
        HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )
    )


def run_hunyuan(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(1, 7)
    mask[:, 5:] = 0  # padded text
    return model(
        hidden_states=torch.randn(1, 4, 3, 4, 6, generator=generator).to(dtype),
        timestep=STEP,
        encoder_hidden_states=torch.randn(1, 7, 16, generator=generator).to(dtype),
        encoder_attention_mask=mask,
        pooled_projections=torch.randn(1, 8, generator=generator).to(dtype),
        guidance=torch.tensor([6000.0], dtype=dtype),
        return_dict=False,
    )[0]


def cog(patch_t=None, rotary=True):
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    return scrambled(
        CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=8,
            num_layers=2,
            sample_width=16,
            sample_height=12,
            sample_frames=9,
            patch_size=2,
            patch_size_t=patch_t,
            max_text_seq_length=8,
            use_rotary_positional_embeddings=rotary,
        )
    )


def run_cog(model, dtype=torch.float32):
    """RoPE as CogVideoXPipeline prepares it, for a clip of another shape than the model's own."""
    from diffusers import CogVideoXPipeline

    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, 4, 8, 12, generator=generator)  # B, F', C, h, w

    class Pipeline:
        transformer = model
        vae_scale_factor_spatial = 8

    tables = CogVideoXPipeline._prepare_rotary_positional_embeddings(Pipeline, 64, 96, 4, torch.device("cpu"))
    return model(
        hidden_states=latents.to(dtype),
        timestep=STEP,
        encoder_hidden_states=torch.randn(1, 8, 8, generator=generator).to(dtype),
        image_rotary_emb=tables if model.config.use_rotary_positional_embeddings else None,
        return_dict=False,
    )[0]


def following(attention):
    """attention(model, ...) with the arguments of Family.attention."""

    @contextlib.contextmanager
    def context(model, adapters=(), time_positions=None, on_qk=None):
        control = AttentionControl(AdapterStack(adapters), time_positions, on_qk)
        with attention(model, control):
            yield control

    return context


of_hunyuan, of_cog = following(hunyuan_video.attention), following(cogvideox.attention)
CASES = {
    "hunyuan": (hunyuan, run_hunyuan, of_hunyuan, HunyuanVideoAttention),
    "cogvideox": (cog, run_cog, of_cog, CogVideoXAttention),
    "cogvideox-1.5": (lambda: cog(patch_t=2), run_cog, of_cog, CogVideoXAttention),
    "cogvideox-2b": (lambda: cog(rotary=False), run_cog, of_cog, CogVideoXAttention),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    make, run, attention, processor = CASES[request.param]
    return make(), run, attention, processor


def adapter_of(model, heads, targets="qkvo", seed=0):
    generator = torch.Generator().manual_seed(seed)
    adapter = HeadLora(
        heads,
        num_heads=2,
        head_dim=model.config.attention_head_dim,
        rank=2,
        alpha=2.0,
        targets=targets,
        generator=generator,
    )
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return adapter


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_outputs_equal_the_stock_model_to_rounding(case, backend):
    model, run, attention, _ = case
    stock = run(model)
    with fym_kernels.use_backend(backend), attention(model) as control:
        torch.testing.assert_close(run(model), stock, rtol=0, atol=ROUNDING)
        control.time_positions = torch.arange(control.grid[0], dtype=torch.float64)
        torch.testing.assert_close(run(model), stock, rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_bf16_is_as_close_to_float64_as_the_stock_model(case):
    """Both see the same bf16 weights; ours rounds at fewer places."""
    model, run, attention, _ = case
    low = type(model).from_config(model.config).eval().requires_grad_(False)
    low.load_state_dict(model.state_dict())
    low.to(torch.bfloat16)
    exact_model = type(model).from_config(model.config).eval()
    exact_model.load_state_dict(low.state_dict())
    exact = run(exact_model)  # float32: its own error is 2^-16 of bf16's
    stock = (run(low, torch.bfloat16).float() - exact).square().mean().sqrt()
    with attention(low):
        ours = (run(low, torch.bfloat16).float() - exact).square().mean().sqrt()
    assert 0 < ours <= 1.5 * stock


@torch.no_grad()
def test_time_positions_count_also_without_rope(case):
    """CogVideoX 2B adds its places to the tokens."""
    model, run, attention, _ = case
    with attention(model) as control:
        plain = run(model)
        control.time_positions = 4.0 * torch.arange(control.grid[0], dtype=torch.float64)
        moved = run(model)
    assert (plain - moved).abs().max() > 1e-3


@torch.no_grad()
def test_processors_are_restored_object_for_object_also_after_an_error(case):
    model, _, attention, processor = case
    before = dict(model.attn_processors)
    with contextlib.suppress(RuntimeError), attention(model):
        inside = model.attn_processors
        ours = [name for name, value in inside.items() if isinstance(value, processor)]
        assert len(ours) == 2
        assert all(inside[name] is before[name] for name in before if name not in ours)  # Hunyuan's refiner
        raise RuntimeError
    after = model.attn_processors
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_adapter_equals_the_update_merged_into_the_weights(case, request):
    """Head-restricted LoRA through the processor against W + scale B A of the same model."""
    model, run, attention, _ = case
    blocks = [block.attn1 if hasattr(block, "attn1") else block.attn for block in model.transformer_blocks]
    blocks += [block.attn for block in getattr(model, "single_transformer_blocks", [])]
    targets = "qkv" if "hunyuan" in request.node.callspec.id else "qkvo"
    adapter = adapter_of(model, [[0], [1]], targets)
    with torch.no_grad():
        base = run(model)
        with attention(model, adapters=[(adapter, 0.5)]):
            ours = run(model)
        layers = dict(zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True))
        before = {}
        for name, value in adapter.to_full().items():
            layer, p, kind = int(name.split(".")[1]), name.split(".")[2], name.split(".")[3]
            if kind == "lora_A":
                weight = blocks[layer].get_submodule(layers[p]).weight
                before[weight] = weight.clone()
                weight += 0.5 * adapter.scaling * adapter.to_full()[name[:-1] + "B"] @ value
        try:
            merged = run(model)
        finally:
            for weight, value in before.items():
                weight.copy_(value)
    assert (ours - base).abs().max() > 1e-3
    torch.testing.assert_close(ours, merged, rtol=0, atol=ROUNDING)


def test_adapters_learn_and_the_model_does_not(case, request):
    model, run, attention, _ = case
    targets = "qkv" if "hunyuan" in request.node.callspec.id else "qkvo"
    adapter = adapter_of(model, [[1], [0, 1]], targets)
    with attention(model, adapters=[(adapter, 1.0)]):
        run(model).square().mean().backward()
    assert all(p.grad.abs().max() > 0 and p.grad.isfinite().all() for p in adapter.parameters())
    assert all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_classification_sees_the_tokens_of_the_latents(case):
    model, run, attention, _ = case
    seen = []
    with attention(model, on_qk=lambda layer, q, k: seen.append((layer, q.shape, k.shape))) as control:
        run(model)
    frames, rows, columns = control.grid
    shape = (1, frames * rows * columns, 2, model.config.attention_head_dim)
    assert seen == [(0, shape, shape), (1, shape, shape)]


def test_an_output_adapter_on_a_single_layer_is_refused():
    model = hunyuan()
    with (
        pytest.raises(ValueError, match="qkv"),
        of_hunyuan(model, adapters=[(adapter_of(model, [[0], [1]]), 1.0)]),
    ):
        pass
    with of_hunyuan(model, adapters=[(adapter_of(model, [[0], []]), 1.0)]):
        run_hunyuan(model)
