"""Motion files of HunyuanVideo and CogVideoX in other programs' layouts. Wan's: test_convert.py."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fym.adapters import HeadLora
from fym.convert import convert
from fym.errors import UserError
from fym.lora_file import HEADER
from fym.motion_file import load_motion_file, save_motion_file

HEADS, HEAD_DIM, RANK, ALPHA = 2, 10, 3, 1.5
D = HEADS * HEAD_DIM
GROUPS = {"hunyuan_video": [1, 2], "cogvideox": [2]}


def make(family, path, heads=([0], [1], [0, 1])):
    """A motion file of random values; its path."""
    generator = torch.Generator().manual_seed(0)
    layers = sum(GROUPS[family])
    adapter = HeadLora(
        list(heads)[:layers],
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        rank=RANK,
        alpha=ALPHA,
        targets="qkv" if family == "hunyuan_video" else "qkvo",
        generator=generator,
    )
    for parameter in adapter.parameters():
        parameter.data.normal_(generator=generator)
    about = {"model_id": "m", "model_hash": "h", "family": family, "layer_groups": GROUPS[family]}
    save_motion_file(path, adapter, None, about)
    return path


@pytest.fixture(params=GROUPS)
def family(request):
    return request.param


@pytest.fixture
def source(family, tmp_path):
    return make(family, tmp_path / "motion.safetensors")


def added(path):
    """(layer, projection) to what it adds to the weights."""
    adapter = load_motion_file(path).temporal
    full = adapter.to_full()
    return {
        (layer, p): full[f"blocks.{layer}.{p}.lora_B"] @ full[f"blocks.{layer}.{p}.lora_A"] * adapter.scaling
        for layer, p in itertools.product(range(len(adapter.heads)), adapter.targets)
    }


def products(path, ends=("lora_A.weight", "lora_B.weight")):
    """By stem, what a program adds that scales by alpha / rank."""
    tensors, found = load_file(path), {}
    for name in tensors:
        stem, _, end = name.partition(f".{ends[0]}")
        if name.endswith(ends[0]) and not end:
            down, up = tensors[name], tensors[f"{stem}.{ends[1]}"]
            found[stem] = up @ down * (tensors[f"{stem}.alpha"].item() / len(down))
    assert len(tensors) == 3 * len(found)
    return found


@pytest.mark.parametrize("layout", ["fym", "diffusers", "comfyui", "kohya"])
def test_any_layout_comes_back_as_it_was(family, source, tmp_path, layout):
    out, back = tmp_path / "out.safetensors", tmp_path / "back.safetensors"
    if (family, layout) == ("cogvideox", "kohya"):
        with pytest.raises(UserError, match=r"no kohya layout.*cogvideox.*--to diffusers"):
            convert([source], out, layout=layout)
        assert not out.exists()
        return
    convert([source], out, layout=layout)
    convert([out], back)
    assert back.read_bytes() == source.read_bytes()


def test_the_motion_file_itself_has_diffusers_names(family, source):
    names = {name.rpartition(".lora_")[0].removeprefix("transformer.") for name in load_file(source)}
    if family == "cogvideox":
        stems, last = ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"], ["to_out.0"]
    else:
        stems, last = [f"transformer_blocks.{n}.attn" for n in range(1)], []
        stems += [f"single_transformer_blocks.{n}.attn" for n in range(2)]
    assert names == {f"{stem}.{p}" for stem in stems for p in ["to_q", "to_k", "to_v", *last]}


class TestCogVideoXInComfyUI:
    def test_names_are_those_of_its_modules(self, tmp_path):
        """comfy/ldm/cogvideo/model.py: blocks.N.{q,k,v,attn_out}."""
        source = make("cogvideox", tmp_path / "m.safetensors")
        convert([source], tmp_path / "x.safetensors", layout="comfyui")
        found = products(tmp_path / "x.safetensors")
        for (layer, p), product in added(source).items():
            name = {"o": "attn_out"}.get(p, p)
            torch.testing.assert_close(found[f"diffusion_model.blocks.{layer}.{name}"], product)
        assert len(found) == 8


class TestHunyuanVideoInOneLayer:
    """Its makers' model has q, k and v in one layer, in single layers with the feed-forward branch."""

    @pytest.fixture
    def file(self, tmp_path):
        return make("hunyuan_video", tmp_path / "m.safetensors")

    @pytest.mark.parametrize(
        ("layout", "stems", "ends"),
        [
            (
                "comfyui",
                ("diffusion_model.double_blocks.{}.img_attn.qkv", "diffusion_model.single_blocks.{}.linear1"),
                ("lora_A.weight", "lora_B.weight"),
            ),
            (
                "kohya",
                ("lora_unet_double_blocks_{}_img_attn_qkv", "lora_unet_single_blocks_{}_linear1"),
                ("lora_down.weight", "lora_up.weight"),
            ),
        ],
    )
    def test_rows_are_those_of_the_makers_layers(self, file, tmp_path, layout, stems, ends):
        """q, k, v and, in single layers, 4 d rows after them, as diffusers' conversion script splits them."""
        convert([file], tmp_path / "x.safetensors", layout=layout)
        found, wanted = products(tmp_path / "x.safetensors", ends), added(file)
        assert len(found) == 3
        for layer, (kind, number) in enumerate([(0, 0), (1, 0), (1, 1)]):
            product = found[stems[kind].format(number)]
            q, k, v, rest = product.split([D, D, D, 4 * D * kind])
            for p, rows in zip("qkv", (q, k, v), strict=True):
                torch.testing.assert_close(rows, wanted[layer, p])
            assert not rest.any()

    def test_diffusers_own_converter_finds_the_same_layers(self, file, tmp_path):
        """It knows no alpha, so B is scaled first; its single layers are of the published width, 3072."""
        from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

        convert([file], tmp_path / "x.safetensors", layout="comfyui")
        scale, original = ALPHA / RANK, {}
        for name, tensor in load_file(tmp_path / "x.safetensors").items():
            if "double" in name and not name.endswith("alpha"):
                original[name.replace("img_attn.qkv", "img_attn_qkv")] = (
                    tensor * scale if "lora_B" in name else tensor
                )
        theirs = _convert_hunyuan_video_lora_to_diffusers(original)
        for p in "qkv":
            stem = f"transformer.transformer_blocks.0.attn.to_{p}"
            product = theirs[f"{stem}.lora_B.weight"] @ theirs[f"{stem}.lora_A.weight"]
            torch.testing.assert_close(product, added(file)[0, p])
        assert len(theirs) == 6

    def test_values_beside_the_diagonal_are_refused(self, file, tmp_path):
        """They would let one projection's rank act in another, or change the feed-forward branch."""
        convert([file], tmp_path / "x.safetensors", layout="comfyui")
        from safetensors import safe_open

        with safe_open(str(tmp_path / "x.safetensors"), "pt") as opened:
            record = json.loads(opened.metadata()[HEADER])
        del record["sha256"]  # as of a file that claims no digest
        for row, column in ((0, RANK), (3 * D, 0)):
            tensors = load_file(tmp_path / "x.safetensors")
            tensors["diffusion_model.single_blocks.0.linear1.lora_B.weight"][row, column] = 1.0
            save_file(tensors, str(tmp_path / "bad.safetensors"), {HEADER: json.dumps(record)})
            with pytest.raises(UserError, match="changes more than q, k and v"):
                load_motion_file(tmp_path / "bad.safetensors")

    def test_an_adapter_on_o_has_no_such_layout(self, tmp_path):
        adapter = HeadLora([[0], [], []], num_heads=HEADS, head_dim=HEAD_DIM, rank=1, alpha=1.0)
        about = {"model_id": "m", "model_hash": "h", "family": "hunyuan_video", "layer_groups": [1, 2]}
        save_motion_file(tmp_path / "m.safetensors", adapter, None, about)
        with pytest.raises(UserError, match="no comfyui layout"):
            convert([tmp_path / "m.safetensors"], tmp_path / "x.safetensors", layout="comfyui")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "sora"}, "family sora"),
        ({"family": 3}, "family in its header"),
        ({"layer_groups": [1, 1]}, "do not add up"),
        ({"layer_groups": [3]}, "named in none of the layouts"),
        ({"layer_groups": [2, 1]}, "is missing"),
        ({"layer_groups": "12"}, "do not add up"),
        ({"layer_groups": [4, -1]}, "do not add up"),
        ({"compact": True}, "named in none of the layouts"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(tmp_path, change, message):
    from safetensors import safe_open

    source = make("hunyuan_video", tmp_path / "m.safetensors")
    convert([source], tmp_path / "x.safetensors", layout="comfyui")
    with safe_open(str(tmp_path / "x.safetensors"), "pt") as opened:
        record = json.loads(opened.metadata()[HEADER]) | change
    del record["sha256"]
    save_file(
        load_file(tmp_path / "x.safetensors"), str(tmp_path / "b.safetensors"), {HEADER: json.dumps(record)}
    )
    with pytest.raises(UserError, match=message):
        load_motion_file(tmp_path / "b.safetensors")
