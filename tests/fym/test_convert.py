"""Motion files for other programs: their own loaders and rules find every tensor, and nothing gets lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fym import cli
from fym.adapters import AdapterStack
from fym.convert import convert
from fym.errors import UserError
from fym.families import load_family
from fym.generate import generate
from fym.lora_file import read
from fym.motion_file import load_motion_file, save_motion_file

LAYERS, D = 2, 36

# ComfyUI, comfy/lora.py (model_lora_keys_unet) and comfy/weight_adapter/lora.py (LoRAAdapter.load), as of
# 2026: what a LoRA file may call a weight "diffusion_model.X.weight" of a model without a branch of its own
# there, such as Wan: with X as it is, or "lora_unet_" and X with underscores. Then a pair of endings, up
# before down, and ".alpha", without which the scale is 1.
COMFYUI_STEMS = ("diffusion_model.{dots}", "lora_unet_{underscores}")
COMFYUI_ENDS = (("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"))
# Wan's own names of its weights (Wan2.1, wan/modules/model.py), which ComfyUI's model keeps.
WAN_LINEARS = [f"self_attn.{p}" for p in "qkvo"] + [f"cross_attn.{p}" for p in "qkvo"] + ["ffn.0", "ffn.2"]
# kohya-ss/musubi-tuner, networks/lora.py and networks/lora_wan.py: "lora_unet_", the module's path with
# underscores, then these; alpha is a number that the product is multiplied with, over the rank.
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_family, make_adapter):
    """A motion file with its spatial neighbour; ranks differ, alpha is no power of two of them."""
    path = tmp_path_factory.mktemp("source") / "motion.safetensors"
    about = {"model_id": tiny_family.model_id, "model_hash": tiny_family.model_hash, "caption": "a ball"}
    temporal = make_adapter([[0, 2], [1]], rank=3, alpha=2.0)
    save_motion_file(path, temporal, make_adapter([[1], [0, 2]], rank=2, alpha=2.5, seed=1), about)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny_family, make_adapter):
    """The motion of another clip, without output projections, on overlapping heads, at high noise only."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    about = {"model_id": tiny_family.model_id, "model_hash": tiny_family.model_hash, "lowest_noise": 0.7}
    save_motion_file(path, make_adapter([[2], [0]], rank=4, seed=2, targets="qkv"), None, about)
    return path


def products(tensors, stem, ends, layers=LAYERS):
    """By layer and projection: what a file adds to the weight, as a reader of its layout works it out."""
    found = {}
    for layer in range(layers):
        for p in "qkvo":
            name = stem.format(layer=layer, p=p)
            down, up = tensors[f"{name}.{ends[0]}"], tensors[f"{name}.{ends[1]}"]
            found[layer, p] = up @ down * (tensors[f"{name}.alpha"] / len(down))
    return found


def added(adapter):
    """The same from an adapter."""
    full = adapter.to_full()
    return {
        (layer, p): full[f"blocks.{layer}.{p}.lora_B"] @ full[f"blocks.{layer}.{p}.lora_A"] * adapter.scaling
        for layer in range(LAYERS)
        for p in "qkvo"
    }


class TestLayouts:
    @pytest.mark.parametrize("layout", ["comfyui", "diffusers", "kohya", "fym"])
    @pytest.mark.parametrize("file", ["motion.safetensors", "spatial.safetensors"])
    def test_any_layout_comes_back_as_it_was(self, source, tmp_path, layout, file):
        out, back = tmp_path / "out.safetensors", tmp_path / "back.safetensors"
        convert([source.with_name(file)], out, layout=layout)
        convert([out], back)
        assert back.read_bytes() == source.with_name(file).read_bytes()

    @pytest.mark.parametrize("layout", ["comfyui", "kohya"])
    def test_comfyui_finds_every_tensor(self, source, tmp_path, layout):
        convert([source], tmp_path / "x.safetensors", layout=layout)
        tensors = load_file(tmp_path / "x.safetensors")
        left, found = set(tensors), {}
        for name in (f"blocks.{n}.{linear}" for n in range(LAYERS) for linear in WAN_LINEARS):
            for stem in COMFYUI_STEMS:
                key = stem.format(dots=name, underscores=name.replace(".", "_"))
                for up, down in COMFYUI_ENDS:
                    if f"{key}.{up}" in tensors:
                        a, b = tensors[f"{key}.{down}"], tensors[f"{key}.{up}"]
                        found[name] = b @ a * (tensors[f"{key}.alpha"].item() / len(a))
                        left -= {f"{key}.{up}", f"{key}.{down}", f"{key}.alpha"}
        assert not left and len(found) == LAYERS * 4
        for (layer, p), product in added(load_motion_file(source).temporal).items():
            assert torch.allclose(found[f"blocks.{layer}.self_attn.{p}"], product, atol=1e-6)

    def test_comfyui_knows_no_diffusers_keys_of_wan(self, source, tmp_path):
        """Which is why the motion file itself is not in diffusers' layout."""
        convert([source], tmp_path / "x.safetensors", layout="diffusers")
        stems = tuple(stem.partition("{")[0] for stem in COMFYUI_STEMS)
        assert not any(key.startswith(stems) for key in load_file(tmp_path / "x.safetensors"))

    def test_kohya_keys(self, source, tmp_path):
        convert([source], tmp_path / "x.safetensors", layout="kohya")
        tensors = load_file(tmp_path / "x.safetensors")
        stems = [f"lora_unet_blocks_{n}_self_attn_{p}" for n in range(LAYERS) for p in "qkvo"]
        assert set(tensors) == {f"{stem}.{end}" for stem in stems for end in KOHYA_ENDS}
        found = products(tensors, "lora_unet_blocks_{layer}_self_attn_{p}", KOHYA_ENDS)
        for key, product in added(load_motion_file(source).temporal).items():
            assert torch.allclose(found[key], product, atol=1e-6)

    @pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
    def test_dtype_rounds_the_values_and_leaves_the_rest(self, source, tmp_path, dtype, bits):
        convert([source], tmp_path / "x.safetensors", layout="kohya", dtype=dtype)
        tensors = load_file(tmp_path / "x.safetensors")
        assert {str(t.dtype) for n, t in tensors.items() if not n.endswith("alpha")} == {f"torch.{dtype}"}
        exact, found = (
            load_motion_file(source).temporal,
            load_motion_file(tmp_path / "x.safetensors").temporal,
        )
        assert (found.alpha, found.rank) == (exact.alpha, exact.rank)
        for one, rounded in zip(exact.parameters(), found.parameters(), strict=True):
            assert rounded.dtype == torch.float32 and not torch.equal(one, rounded)
            assert ((one - rounded).abs() <= one.abs() * 2.0**-bits + 2.0**-24).all()

    def test_values_that_overflow_are_not_written(self, tmp_path, make_adapter, tiny_family):
        about = {"model_id": "m", "model_hash": "h"}
        save_motion_file(tmp_path / "big.safetensors", make_adapter([[0], [0]], std=1e5), None, about)
        with pytest.raises(UserError, match=r"does not fit into float16.*bfloat16"):
            convert([tmp_path / "big.safetensors"], tmp_path / "x.safetensors", dtype="float16")
        assert not (tmp_path / "x.safetensors").exists()

    def test_compact_keeps_the_active_rows_only(self, source, tmp_path):
        small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
        convert([source], small, compact=True)
        tensors = load_file(small)
        assert tensors["diffusion_model.blocks.1.self_attn.q.lora_B.weight"].shape == (12, 3)
        assert tensors["diffusion_model.blocks.1.self_attn.o.lora_A.weight"].shape == (3, 12)
        weights = sum(t.numel() for name, t in tensors.items() if not name.endswith("alpha"))
        assert weights == load_motion_file(source).temporal.num_parameters()
        convert([small], back)
        assert back.read_bytes() == source.read_bytes()
        with pytest.raises(UserError, match="no other program"):
            convert([source], small, layout="comfyui", compact=True)


class TestDiffusers:
    """Plain diffusers' `load_lora_weights`: the transformer's output with a file is ours with the adapter."""

    @pytest.fixture(scope="class")
    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 16, 3, 4, 6, generator=generator)
        return latents, torch.tensor([500.0]), torch.randn(1, 16, 32, generator=generator)

    @staticmethod
    def ours(folder, adapters, inputs):
        family = load_family(folder, dtype="float32", device="cpu")
        with family.attention(adapters=adapters):
            return family.predict(*inputs)

    @staticmethod
    def theirs(folder, file, inputs):
        from diffusers import WanPipeline

        pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
        if file is not None:
            pipe.load_lora_weights(file)
        latents, timestep, text = inputs
        with torch.no_grad():
            return pipe.transformer(latents, timestep, text, return_dict=False)[0]

    @pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
    def test_same_output(self, tiny_wan, source, tmp_path, inputs, layout):
        folder, file = str(tiny_wan()), tmp_path / "x.safetensors"
        convert([source], file, layout=layout)
        ours = self.ours(folder, [(load_motion_file(source).temporal, 1.0)], inputs)
        theirs, base = self.theirs(folder, file, inputs), self.theirs(folder, None, inputs)
        # Both are float32 sums in another order; the adapter moves the output by far more.
        assert (ours - theirs).norm() < 1e-5 * theirs.norm() < 1e-3 * (theirs - base).norm()

    def test_same_output_of_a_merged_file_and_of_the_embedded_model(self, source, make_adapter, tmp_path):
        """Both adapters in one file, ranks and alphas unlike, some layers without any."""
        from fym.adapters import HeadLora
        from fym.embedded import model_path

        family = load_family("embedded", dtype="float32", device="cpu")
        generator = torch.Generator().manual_seed(5)
        size = {"num_heads": family.num_heads, "head_dim": family.head_dim, "generator": generator}
        pair = []
        for rank, some in ((4, slice(0, 2)), (6, slice(1, None))):
            heads = [list(range(family.num_heads))[some] if n % 3 else [] for n in range(family.num_layers)]
            adapter = HeadLora(heads, rank=rank, alpha=3.0, **size)
            for name, parameter in adapter.named_parameters():
                if name.endswith("lora_B"):
                    parameter.data.normal_(std=0.2, generator=generator)
            pair.append(adapter)
        motion = tmp_path / "motion.safetensors"
        save_motion_file(motion, *pair, {"model_id": "embedded", "model_hash": family.model_hash})
        convert([motion], tmp_path / "both.safetensors", layout="diffusers", spatial=0.5)
        latents = torch.randn(1, family.transformer.config.in_channels, 3, 6, 6, generator=generator)
        inputs = latents, torch.tensor([700.0]), family.encode_prompts(["a red ball"])
        with family.attention(adapters=[(pair[0], 1.0), (pair[1], 0.5)]):
            ours = family.predict(*inputs)
        theirs = self.theirs(model_path(), tmp_path / "both.safetensors", inputs)
        base = self.theirs(model_path(), None, inputs)
        assert (ours - theirs).norm() < 1e-5 * theirs.norm() < 1e-3 * (theirs - base).norm()

    def test_kohya_files_need_all_ten_linears_of_a_block_there(self, tiny_wan, source, tmp_path, inputs):
        """diffusers' reader of that layout knows no adapter of the self-attention alone; with the other six
        linears added as zeros it gives the same output, so the values are right."""
        folder, file = str(tiny_wan()), tmp_path / "x.safetensors"
        convert([source], file, layout="kohya")
        with pytest.raises(KeyError, match="lora_down"):
            self.theirs(folder, file, inputs)
        tensors = load_file(file)
        sizes = {"ffn.0": (36, 32), "ffn.2": (32, 36)}
        for name in WAN_LINEARS[4:]:
            wide, high = sizes.get(name, (36, 36))
            for layer in range(LAYERS):
                stem = f"lora_unet_blocks_{layer}_{name.replace('.', '_')}"
                tensors[f"{stem}.lora_down.weight"] = torch.zeros(3, wide)
                tensors[f"{stem}.lora_up.weight"] = torch.zeros(high, 3)
                tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        save_file(tensors, file)
        ours = self.ours(folder, [(load_motion_file(source).temporal, 1.0)], inputs)
        theirs = self.theirs(folder, file, inputs)
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()

    def test_alpha_is_in_the_header_as_diffusers_writes_it(self, source, tmp_path):
        """Its keys hold no alpha: a file without this is read with alpha = rank."""
        convert([source], tmp_path / "x.safetensors", layout="diffusers")
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            peft = json.loads(file.metadata()["lora_adapter_metadata"])
        assert (peft["transformer.r"], peft["transformer.lora_alpha"]) == (3, 2.0)
        assert "blocks.1.attn1.to_out.0" in peft["transformer.target_modules"]


class TestCompose:
    def test_the_sum_of_the_products_with_their_weights(self, source, other, tmp_path):
        convert([source, other], tmp_path / "x.safetensors", weights=[0.7, 1.3], spatial=0.0)
        found = added(load_motion_file(tmp_path / "x.safetensors").temporal)
        one, two = added(load_motion_file(source).temporal), load_motion_file(other).temporal.to_full()
        for (layer, p), product in found.items():
            wanted = 0.7 * one[layer, p]
            if p != "o":
                name = f"blocks.{layer}.{p}.lora_"
                wanted = wanted + 1.3 * (1.5 / 4) * two[f"{name}B"] @ two[f"{name}A"]
            assert torch.allclose(product, wanted, atol=1e-6)

    def test_the_kernels_get_the_same_numbers_bit_for_bit(self, source, other, tmp_path):
        """A composed file is to the model what its parts are together, so clips are equal, not only alike."""
        one, two = load_motion_file(source), load_motion_file(other)
        merged, about = convert([source, other], tmp_path / "x.safetensors", weights=[0.7, 1.3])
        apart = AdapterStack([(one.temporal, 0.7), (two.temporal, 1.3)])
        together = AdapterStack([(merged, 1.0)])
        for layer in range(LAYERS):
            left, right = apart.qkv(layer), together.qkv(layer)
            assert torch.equal(left.heads, right.heads) and left.scale == right.scale == 1.0
            for p in "qkv":
                assert torch.equal(left.lora_a[p], right.lora_a[p])
                assert torch.equal(left.lora_b[p], right.lora_b[p])
        assert [part["rank"] for part in about["parts"]] == [3, 4] and about["parts"][0][
            "caption"
        ] == "a ball"

    def test_spatial_is_merged_at_its_strength(self, source, tmp_path):
        file = load_motion_file(source)
        merged, about = convert([source], tmp_path / "x.safetensors", spatial=0.5)
        one, two = added(file.temporal), added(file.spatial)
        for key, product in added(merged).items():
            assert torch.allclose(product, one[key] + 0.5 * two[key], atol=1e-6)
        assert (merged.rank, merged.alpha) == (5, 5.0)
        assert [(part["kind"], part["scale"]) for part in about["parts"]] == [
            ("temporal", 1.0),
            ("spatial", 0.5),
        ]

    def test_composed_files_compose(self, source, other, tmp_path):
        convert([source, other], tmp_path / "a.safetensors", weights=[0.5, 2.0])
        merged, about = convert(
            [tmp_path / "a.safetensors", source], tmp_path / "b.safetensors", weights=[0.5, 1]
        )
        assert [part["scale"] for part in about["parts"]] == [0.25, 1.0, 1] and merged.rank == 10
        assert [part["lowest_noise"] for part in about["parts"]] == [0.0, 0.7, 0.0]

    def test_generating_with_it_is_generating_with_both(self, tiny_family, source, other, tmp_path):
        """Each part keeps the noise level from which it acts, on the way through the file too."""
        convert([source, other], tmp_path / "x.safetensors", weights=[0.7, 1.3])
        one, two = load_motion_file(source), load_motion_file(other)
        options = {"steps": 4, "num_frames": 5}
        [apart] = generate(tiny_family, ["a"], motion=[one, two], temporal_scale=[0.7, 1.3], **options)
        [composed] = generate(
            tiny_family, ["a"], motion=load_motion_file(tmp_path / "x.safetensors"), **options
        )
        assert torch.equal(apart, composed)
        [always] = generate(
            tiny_family, ["a"], motion=[one, two], temporal_scale=[0.7, 1.3], lowest_noise=0.0, **options
        )
        [alone] = generate(tiny_family, ["a"], motion=one, temporal_scale=0.7, **options)
        assert not torch.equal(apart, always) and not torch.equal(apart, alone)

    def test_one_scale_stands_for_all(self, tiny_family, source, other):
        both = [load_motion_file(source), load_motion_file(other)]
        options = {"steps": 2, "num_frames": 5, "motion": both}
        [one] = generate(tiny_family, ["a"], temporal_scale=0.5, **options)
        [each] = generate(tiny_family, ["a"], temporal_scale=[0.5, 0.5], **options)
        assert torch.equal(one, each)

    def test_what_does_not_go_together_is_refused(self, source, other, tmp_path, make_adapter):
        foreign, out = tmp_path / "foreign.safetensors", tmp_path / "out.safetensors"
        save_motion_file(foreign, make_adapter([[0], [0]]), None, {"model_id": "m", "model_hash": "h" * 64})
        for files, options, message in (
            ([source, foreign], {}, "different models.*and m \\(hhhhhhhh\\)"),
            ([source, other], {"spatial": 0.5}, "other.safetensors has no spatial adapter"),
            ([source, other], {"weights": [1.0, 2.0, 3.0]}, "3 weights do not go with 2 files"),
        ):
            with pytest.raises(UserError, match=message):
                convert(files, out, **options)
        with pytest.raises(UserError, match="not written"):
            convert([source], source.with_name("spatial.safetensors"))
        assert not out.exists()


class TestCommand:
    def test_there_and_back(self, source, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for layout in ("comfyui", "diffusers", "kohya"):
            assert cli.main(["convert", str(source), "--to", layout, "-o", f"{layout}.safetensors"]) == 0
            assert f"{layout}.safetensors: {layout}, float32, rank 3, alpha 2," in capsys.readouterr().out
            assert cli.main(["convert", f"{layout}.safetensors"]) == 0
            assert Path(f"{layout}.fym.safetensors").read_bytes() == source.read_bytes()

    def test_options(self, source, other, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        command = [
            "convert",
            str(source),
            str(other),
            "--weight",
            "1.0",
            "--weight",
            "0.7",
            "-o",
            "x.safetensors",
        ]
        assert cli.main([*command, "--to", "kohya", "--dtype", "bfloat16"]) == 0
        assert "from 0.7 up" in capsys.readouterr().out
        merged, about = read(Path("x.safetensors"))
        assert merged.rank == 7 and [part["scale"] for part in about["parts"]] == [1.0, 0.7]
        assert (
            cli.main(["convert", str(source), "--merge", "spatial=0.5", "--compact", "-o", "y.safetensors"])
            == 0
        )
        assert read(Path("y.safetensors"))[0].rank == 5

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--merge", "look=1"], "spatial=NUMBER"),
            (["--merge", "spatial=much"], "spatial=NUMBER"),
            (["--weight", "nan"], "not finite"),
            (["--to", "comfyui", "--compact"], "no other program"),
            (["gone.safetensors"], "no such file"),
        ],
    )
    def test_mistakes_are_told(self, source, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["convert", str(source), "-o", "x.safetensors", *arguments]) == 2
        assert message in capsys.readouterr().err and not list(Path().iterdir())

    def test_generate_takes_several(self, source, other, tiny_wan, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        command = ["generate", "--model", str(tiny_wan()), "--prompt", "a", "--steps", "1", "--frames", "5"]
        command += ["--motion", str(source), "--motion", str(other)]
        assert cli.main([*command, "--scale", "1.0", "--scale", "0.7"]) == 0 and Path("out.mp4").exists()
        assert cli.main([*command, "--scale", "1", "--scale", "1", "--scale", "1"]) == 2
        assert "one for each, and there are 2 files" in capsys.readouterr().err
        foreign = load_motion_file(source)
        save_motion_file(Path("f.safetensors"), foreign.temporal, None, {"model_id": "m", "model_hash": "hh"})
        assert cli.main([*command, "--motion", "f.safetensors"]) == 2
        assert "different models" in capsys.readouterr().err


def test_scales_multiply_as_numbers(make_adapter):
    """A slice of ranks keeps the scale of the whole."""
    adapter = make_adapter([[0], [1]], rank=5, alpha=2.0)
    part = adapter.ranks(1, 3)
    assert part.rank == 2 and math.isclose(part.scaling, adapter.scaling)
    assert torch.equal(part.layer(0)["q"].lora_A, adapter.layer(0)["q"].lora_A[1:3])
    assert torch.equal(part.layer(1)["o"].lora_B, adapter.layer(1)["o"].lora_B[:, 1:3])
