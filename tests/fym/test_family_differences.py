"""What each family does in its own way: schedules, latents, prompts, experts; and what each refuses."""

import json
import shutil

import pytest
import torch
from tiny_pipelines import FRAMES, HEIGHT, WIDTH

from fym.adapters import HeadLora
from fym.config_file import load_config
from fym.errors import UserError
from fym.families import load_family
from fym.families.base import AttentionControl
from fym.families.hunyuan_video import HunyuanVideoAttention
from fym.flow import VPrediction
from fym.ranks import ALONE
from fym.stage import Sample, Stage, _backward

T = torch.tensor([900.0])


@pytest.fixture
def load(tiny_model):
    return lambda name: load_family(str(tiny_model(name)), dtype="float32", device="cpu")


def noisy(family, batch=1, seed=0):
    scale, channels = family.pipeline.vae_scale_factor_spatial, family.transformer.config.in_channels
    shape = (batch, channels, 3, family.default_height // scale, family.default_width // scale)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter_on(family, heads=(0,)):
    generator = torch.Generator().manual_seed(0)
    adapter = HeadLora(
        [list(heads)] * family.num_layers,
        num_heads=family.num_heads,
        head_dim=family.head_dim,
        rank=2,
        alpha=2.0,
        targets=family.targets,
        generator=generator,
    )
    for name, parameter in adapter.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(std=0.3, generator=generator)
    return adapter


class TestCogVideoX:
    def test_noise_and_target_are_the_published_scheduler_s(self, load):
        """At every timestep, against diffusers' add_noise and get_velocity."""
        family = load("cogvideox-5b")
        schedule, scheduler = family.schedule, family.pipeline.scheduler
        assert isinstance(schedule, VPrediction)
        levels = (torch.arange(1000) + 0.5) / 1000
        steps = schedule.timestep(levels).long()
        assert torch.equal(steps, torch.arange(1000))
        clean, noise = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            schedule.add_noise(clean, noise, levels), scheduler.add_noise(clean, noise, steps)
        )
        torch.testing.assert_close(
            schedule.target(clean, noise, levels), scheduler.get_velocity(clean, noise, steps)
        )
        last = torch.ones(1)  # no signal is left: the target is all of it
        assert torch.equal(schedule.add_noise(clean[:1], noise[:1], last), noise[:1])
        assert torch.equal(schedule.target(clean[:1], noise[:1], last), -clean[:1])

    def test_levels_are_drawn_over_the_whole_range_and_from_a_lowest_one_up(self):
        schedule = VPrediction(tuple(1 - n / 1000 for n in range(1000)))
        drawn = schedule.draw(4000, torch.Generator().manual_seed(0))
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
        assert schedule.draw(4000, torch.Generator().manual_seed(0), lowest=0.8).min() >= 0.8
        assert schedule.weight(drawn).mean().item() == pytest.approx(1.0, abs=0.02)
        assert schedule.timestep(torch.tensor([0.0, 0.0005, 1.0])).tolist() == [0, 0, 999]

    @torch.no_grad()
    def test_the_transformer_sees_frames_before_channels(self, load):
        family = load("cogvideox-5b")
        latents, text = noisy(family), family.encode_prompts(["a ball"])
        tables = family.pipeline._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, 3, torch.device("cpu"))
        theirs = family.transformer(
            latents.permute(0, 2, 1, 3, 4), text, T, image_rotary_emb=tables, return_dict=False
        )[0]
        assert torch.equal(family.predict(latents, T, text), theirs.permute(0, 2, 1, 3, 4))

    def test_latents_are_scaled_and_come_back(self, load, moving_square):
        family = load("cogvideox-2b")
        latents = family.encode_video(moving_square)
        pixels = moving_square.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        mode = family.pipeline.vae.encode(pixels).latent_dist.mode()[0]
        torch.testing.assert_close(latents, mode * 1.15258426)
        assert family.decode_video(latents).shape == moving_square.shape

    def test_a_tokenizer_of_nothing_but_a_sentencepiece_model_loads(self, tiny_model, tmp_path):
        """So it lies in the published folders; transformers reads it with sentencepiece and protobuf."""
        from sentencepiece import SentencePieceTrainer

        copy = shutil.copytree(tiny_model("cogvideox-5b"), tmp_path / "model")
        shutil.rmtree(copy / "tokenizer")
        (copy / "tokenizer").mkdir()
        (tmp_path / "text").write_text(
            "\n".join(f"a red ball moves over {n} blue squares" for n in range(99))
        )
        special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        SentencePieceTrainer.train(
            input=str(tmp_path / "text"),
            model_prefix=str(copy / "tokenizer" / "spiece"),
            vocab_size=36,
            minloglevel=2,
            **special,
        )
        (copy / "tokenizer" / "spiece.vocab").unlink()
        settings = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>"}
        (copy / "tokenizer" / "tokenizer_config.json").write_text(
            json.dumps(settings | {"unk_token": "<unk>"})
        )
        index = json.loads((copy / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "T5Tokenizer"]
        (copy / "model_index.json").write_text(json.dumps(index))
        text = load_family(str(copy)).encode_prompts(["a red ball", "blue squares"])
        assert text.shape == (2, 16, 32) and not torch.equal(text[0], text[1])

    @torch.no_grad()
    def test_places_without_rope_are_those_of_the_full_clip(self, load):
        """2B: frames 0 and 2 alone, set to the times 0 and 2, become the very tokens they are in the clip."""
        family = load("cogvideox-2b")
        embed, clip = family.transformer.patch_embed, noisy(family).transpose(1, 2)
        text = family.encode_prompts(["a ball"])
        per_frame, before = family.tokens(1, HEIGHT, WIDTH), text.shape[1]
        stock = embed(text, clip)[:, before:].unflatten(1, (3, per_frame))
        with family.attention(time_positions=torch.tensor([0.0, 2.0])):
            moved = embed(text, clip[:, [0, 2]])
        torch.testing.assert_close(moved[:, before:].unflatten(1, (2, per_frame)), stock[:, [0, 2]])
        torch.testing.assert_close(moved[:, :before], embed(text, clip)[:, :before])

    def test_frames_that_the_decoder_would_make_others_of_are_refused(self, load):
        family = load("cogvideox-5b")
        text = family.encode_prompts(["a ball"])
        options = {"height": HEIGHT, "width": WIDTH, "steps": 1, "guidance_scale": 1.0}
        generator = torch.Generator().manual_seed(0)
        with pytest.raises(UserError, match=r"13 frames.*8k\+1.*--frames 9"):
            family.sample(text, None, generator=generator, num_frames=13, **options)
        assert len(family.sample(text, None, generator=generator, num_frames=9, **options)) == 9

    def test_other_kinds_are_refused(self, tiny_model, tmp_path):
        for file, change, message in (
            ("transformer/config.json", {"patch_size_t": 2}, "CogVideoX 1.5"),
            ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "predicts epsilon"),
        ):
            copy = shutil.copytree(tiny_model("cogvideox-5b"), tmp_path / file.partition("/")[0])
            config = json.loads((copy / file).read_text()) | change
            (copy / file).write_text(json.dumps(config))
            if "patch_size_t" in change:
                (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
                from diffusers import CogVideoXTransformer3DModel

                CogVideoXTransformer3DModel.from_config(config).save_pretrained(copy / "transformer")
            with pytest.raises(UserError, match=message):
                load_family(str(copy))


class TestHunyuanVideo:
    @torch.no_grad()
    def test_the_packed_text_is_what_both_encoders_said(self, load):
        family = load("hunyuan_video")
        text = family.encode_prompts(["a red ball", "a blue square moves"])
        embeds, pooled, mask = family.pipeline.encode_prompt(
            "a blue square moves", max_sequence_length=family.defaults.max_sequence_length
        )
        parts = family._unpack(text[1:])
        assert torch.equal(parts["prompt_embeds"], embeds)
        assert torch.equal(parts["pooled_prompt_embeds"], pooled)
        assert torch.equal(parts["prompt_attention_mask"], mask.float()) and 0 < mask.sum() < mask.numel()
        for part in (slice(0, -1), slice(-1, None)):  # both tell the prompts apart
            assert not torch.equal(text[0, part, :-1], text[1, part, :-1])

    @torch.no_grad()
    def test_tuning_asks_for_the_plain_velocity(self, load):
        """Guidance 1, in thousandths; making clips asks for the published 6."""
        family = load("hunyuan_video")
        latents, text = noisy(family, batch=2), family.encode_prompts(["a red ball"])
        parts = family._unpack(text.expand(2, -1, -1))

        def stock(guidance):
            return family.transformer(
                latents,
                T.expand(2),
                parts["prompt_embeds"],
                parts["prompt_attention_mask"],
                parts["pooled_prompt_embeds"],
                guidance=torch.full((2,), guidance),
                return_dict=False,
            )[0]

        predicted = family.predict(latents, T.expand(2), text)
        assert torch.equal(predicted, stock(1000.0)) and not torch.equal(predicted, stock(6000.0))

    def test_dual_layers_come_first_and_the_refiner_is_left_alone(self, load):
        family = load("hunyuan_video")
        assert family.layer_groups == (1, 2) and family.num_layers == 3
        with family.attention():
            processors = family.transformer.attn_processors
            ours = [name for name, p in processors.items() if isinstance(p, HunyuanVideoAttention)]
        assert len(ours) == 3 and not any("context_embedder" in name for name in ours)


class TestTwoExperts:
    def test_tuning_stays_at_the_high_noise_expert_s_levels(self, load, monkeypatch):
        """Every level drawn for a step is the expert's; none below is accepted."""
        family = load("wan-2.2-14b")
        assert family.lowest_noise == 0.875
        seen = []

        def predict(latents, timestep, text):
            seen.extend(timestep.tolist())
            return latents.clone().requires_grad_()

        monkeypatch.setattr(family, "predict", predict)
        config = load_config(None, {"clip.path": "x"})
        latents, text = noisy(family, batch=400), torch.zeros(1)
        stage = Stage("spatial", config.spatial, config.tune, lambda g, b: None)
        sample, generator = Sample(latents, None, text), torch.Generator().manual_seed(0)
        _backward(family, stage, generator, sample, AttentionControl(), ALONE)
        assert 875 <= min(seen) < 880 and 990 < max(seen) <= 1000

    def test_a_lower_level_is_refused(self, load):
        family = load("wan-2.2-14b")
        with pytest.raises(UserError, match=r"noise level 0\.5: below 0\.875"):
            family.predict(noisy(family), torch.tensor([500.0]), family.encode_prompts(["x"]))

    @torch.no_grad()
    def test_the_low_noise_expert_takes_no_adapter(self, load):
        family = load("wan-2.2-14b")
        text = family.encode_prompts(["x"])

        def second():
            later = torch.tensor([500.0])
            return family.pipeline.transformer_2(noisy(family), later, text, return_dict=False)[0]

        stock = second()
        before = family.predict(noisy(family), T, text)
        with family.attention(adapters=[(adapter_on(family), 1.0)]):
            assert torch.equal(second(), stock)
            assert not torch.equal(family.predict(noisy(family), T, text), before)

    @torch.no_grad()
    def test_one_expert_at_a_time_is_on_a_gpu(self, load, monkeypatch):
        """Played on the CPU: the second comes when it is first called and goes at the end."""
        family, moves = load("wan-2.2-14b"), []
        second, text = family.pipeline.transformer_2, family.encode_prompts(["x"])
        family.device = torch.device("meta")
        for name, expert in {"high": family.transformer, "low": second}.items():
            monkeypatch.setattr(expert, "to", lambda device, name=name: moves.append((name, str(device))))
        with family._experts():
            family.transformer(noisy(family), T, text)
            assert moves == []
            second(noisy(family), torch.tensor([500.0]), text)
            assert moves == [("high", "cpu"), ("low", "meta")]
        assert moves[2:] == [("low", "cpu"), ("high", "meta")]
        assert not second._forward_pre_hooks

    def test_one_without_its_boundary_is_refused(self, tiny_model, tmp_path):
        copy = shutil.copytree(tiny_model("wan-2.2-14b"), tmp_path / "x")
        index = json.loads((copy / "model_index.json").read_text()) | {"boundary_ratio": None}
        (copy / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"incomplete.*boundary_ratio"):
            load_family(str(copy))


class TestWan22With5B:
    @torch.no_grad()
    def test_every_token_has_a_timestep_and_48_channels_are_normalised(self, load, moving_square):
        family = load("wan-2.2-5b")
        clip = torch.nn.functional.interpolate(moving_square.permute(0, 3, 1, 2).float(), scale_factor=2)
        latents = family.encode_video(clip.permute(0, 2, 3, 1).to(torch.uint8))
        assert latents.shape == (48, 5, 4, 6)
        mode = family.pipeline.vae.encode(clip.permute(1, 0, 2, 3)[None] / 127.5 - 1).latent_dist.mode()[0]
        torch.testing.assert_close(latents, (mode - 0.1) / 0.9)
        assert family.decode_video(latents).shape == (FRAMES, 2 * HEIGHT, 2 * WIDTH, 3)
        seen = []
        hook = family.transformer.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append(kwargs["timestep"].shape), with_kwargs=True
        )
        family.predict(latents[None], T, family.encode_prompts(["x"]))
        hook.remove()
        assert seen == [(1, family.tokens(FRAMES, 64, 96))] == [(1, 30)]

    def test_defaults_are_those_of_the_model_in_the_folder(self, load, tiny_model, tmp_path):
        sizes = {"wan": (81, 480, 832), "wan-2.2-5b": (121, 704, 1280), "wan-2.2-14b": (81, 720, 1280)}
        for name, size in sizes.items():
            copy = shutil.copytree(tiny_model(name), tmp_path / name)
            (copy / "fym.json").unlink()
            family = load_family(str(copy))
            assert (family.default_frames, family.default_height, family.default_width) == size
            assert family.schedule.shift == (12.0 if name == "wan-2.2-14b" else 5.0)


@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox-2b", "cogvideox-5b"])
class TestJointFamilies:
    def test_recomputing_whole_blocks_gives_the_same_gradients(self, load, name):
        gradients = []
        for recompute in ("none", "block"):
            family = load(name)
            family.recompute = recompute
            adapter, text = adapter_on(family), family.encode_prompts(["a ball"])
            with family.attention(adapters=[(adapter, 1.0)]):
                assert family.transformer.is_gradient_checkpointing == (recompute == "block")
                family.predict(noisy(family), T, text).square().mean().backward()
            assert not family.transformer.is_gradient_checkpointing
            gradients.append([p.grad for p in adapter.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    def test_recomputing_feed_forward_layers_alone_is_refused(self, load, name):
        family = load(name)
        family.recompute = "ffn"
        with pytest.raises(UserError, match="recompute=block"), family.attention():
            pass

    def test_heads_without_an_adapter_are_not_reached_through_a_norm(self, load, name):
        """Each head is normalised by itself: exact, unlike Wan."""
        family, seen = load(name), {}
        text = family.encode_prompts(["a ball"])
        for key, adapters in {"base": [], "adapted": [(adapter_on(family), 1.0)]}.items():
            layers = []

            def note(layer, query, key, layers=layers):
                layers.append((query, key))

            with torch.no_grad(), family.attention(adapters=adapters, on_qk=note):
                family.predict(noisy(family), T, text)
            seen[key] = layers[0]
        for old, new in zip(seen["base"], seen["adapted"], strict=True):
            assert torch.equal(old[:, :, 1:], new[:, :, 1:]) and not torch.equal(old[:, :, :1], new[:, :, :1])
        leaks = family.norm_leak([(adapter_on(family), 1.0)], noisy(family), T, text)
        assert leaks == [(0.0, 0.0)] * family.num_layers


@pytest.mark.parametrize(
    "name", ["wan-2.2-5b", "wan-2.2-14b", "hunyuan_video", "cogvideox-2b", "cogvideox-5b"]
)
def test_in_bfloat16_adapters_learn_in_float32_and_clips_are_made(tiny_model, name):
    """The way real models run: the base in bfloat16, adapter, VAE and loss in float32."""
    family = load_family(str(tiny_model(name)), dtype="bfloat16", device="cpu")
    assert family.dtype == torch.bfloat16 and family.pipeline.vae.dtype == torch.float32
    adapter, text = adapter_on(family), family.encode_prompts(["a red ball"])
    assert text.dtype == torch.bfloat16
    with family.attention(adapters=[(adapter, 1.0)]):
        predicted = family.predict(noisy(family), T, text)
        assert predicted.dtype == torch.float32
        predicted.square().mean().backward()
        options = {"height": family.default_height, "width": family.default_width, "num_frames": 9}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            clip = family.sample(text, text, generator=generator, steps=3, guidance_scale=2.0, **options)
    assert clip.shape == (9, family.default_height, family.default_width, 3) and clip.float().std() > 1
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in adapter.parameters())
