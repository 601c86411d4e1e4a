"""A quantised base does what plain layers with the unpacked weights do, and takes less memory."""

import importlib.util
import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from fym import cli
from fym.adapters import HeadLora
from fym.errors import UserError
from fym.families import load_family
from fym.families.quantised import QuantisedLinear, load_quantised, quantised_layers
from fym.losses import tuning_loss
from fym.shapes_only import LiveBytes
from fym.video import write_clip
from tests.tiny_pipelines import save_tiny_wan

pytest.importorskip("bitsandbytes")
KINDS = ["int8", "nf4"]
CPU = torch.device("cpu")


def packed_layer(kind, d_in=200, d_out=96, dtype=torch.float32):
    """(quantised, plain layer with the same numbers, the original weight)"""
    linear = nn.Linear(d_in, d_out, dtype=dtype).requires_grad_(False)
    layer = QuantisedLinear(linear, kind)
    layer.store(linear.weight)
    plain = nn.Linear(d_in, d_out, dtype=dtype).requires_grad_(False)
    plain.load_state_dict({"weight": layer.weight(dtype), "bias": linear.bias})
    return layer, plain, linear.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_those_of_the_unpacked_weights_bit_for_bit(kind, dtype):
    layer, plain, _ = packed_layer(kind, dtype=dtype)
    x, grad = torch.randn(2, 7, 200, dtype=dtype), torch.randn(2, 7, 96, dtype=dtype)
    results = []
    for made in (layer, plain):
        given = x.clone().requires_grad_()
        out = made(given)
        out.backward(grad)
        results.append((out, given.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.125), ("nf4", 4.5)])
def test_an_unpacked_weight_is_off_by_half_a_step_at_most(kind, bits):
    """int8: 1/254 of the largest weight of its 256; nf4: half the widest gap of its table, 0.152, of 64. One
    percent more, for the library's CPU kernel takes the second nearest of two that are about as near."""
    torch.manual_seed(0)
    layer, plain, weight = packed_layer(kind, 256, 128)
    piece, step = {"int8": (256, 1 / 254), "nf4": (64, 0.152)}[kind]
    error, size = ((t.view(-1, piece).abs()) for t in (plain.weight - weight, weight))
    assert (error <= 1.01 * step * size.amax(1, keepdim=True)).all() and error.any()
    assert 8 * (layer.packed.nbytes + layer.scales.nbytes) == bits * weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_packed_weights_only(kind):
    layer, _, weight = packed_layer(kind, 512, 512)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
        layer(torch.randn(1, 512, requires_grad=True))
    assert sum(kept) == layer.packed.nbytes + layer.scales.nbytes < weight.nbytes / 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("quantised") / "model", head_dim=32, layers=6)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_packs_the_blocks_and_nothing_else(folder, kind):
    """All else equals what diffusers loads in bfloat16, the parts that it keeps in float32 too."""
    loaded = load_quantised(folder / "transformer", ("blocks",), kind, dtype=torch.bfloat16, device=CPU)
    plain = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.bfloat16)
    packed = dict(quantised_layers(loaded))
    linears = {n for n, m in plain.named_modules() if type(m) is nn.Linear and n.startswith("blocks.")}
    assert packed.keys() == linears and len(linears) == 6 * 10
    theirs = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    ours = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    ours = {name: value for name, value in ours.items() if not name.endswith((".packed", ".scales"))}
    assert ours.keys() == theirs.keys() - {f"{name}.weight" for name in linears}
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)
    exact = WanTransformer3DModel.from_pretrained(folder / "transformer")
    for name, layer in packed.items():
        again = QuantisedLinear(nn.Linear(layer.in_features, layer.out_features), kind)
        again.store(exact.get_submodule(name).weight)  # from the file's float32, not from bfloat16
        assert torch.equal(again.packed, layer.packed) and torch.equal(again.scales, layer.scales)


def test_loading_never_holds_the_whole_model(tmp_path):
    """The most that is alive while a model is loaded in float32, whose weights take 4 bytes each."""
    folder = save_tiny_wan(tmp_path / "model", heads=4, head_dim=32, layers=12) / "transformer"

    class RealBytes(LiveBytes):
        def track(self, tensor):
            if not tensor.is_meta:
                super().track(tensor)

    with RealBytes() as live:
        loaded = load_quantised(folder, ("blocks",), "nf4", dtype=torch.float32, device=CPU)
    whole = sum(4 * layer.weight(torch.float32).numel() for _, layer in quantised_layers(loaded))
    rest = sum(p.nbytes for p in loaded.parameters())
    assert live.peak - rest < 0.3 * whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_gradients_of_an_adapter_are_those_on_the_unpacked_weights(folder, kind, recompute):
    """Against the model whose linear layers are plain ones with the unpacked weights, through the kernels."""
    torch.manual_seed(0)
    latents, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 5, 32)
    found = []
    for unpacked in (False, True):
        family = load_family(str(folder), device="cpu", dtype="float32", quantise=kind)
        if unpacked:
            for name, layer in quantised_layers(family.transformer):
                plain = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
                plain.load_state_dict({"weight": layer.weight(torch.float32), "bias": layer.bias})
                family.transformer.set_submodule(name, plain)
        family.recompute = recompute
        torch.manual_seed(1)
        adapters = []
        for first in (0, 1):
            sizes = {"num_heads": family.num_heads, "head_dim": family.head_dim}
            adapters.append(HeadLora([list(range(first, 3, 2))] * 6, **sizes, rank=4, alpha=4))
            for name, parameter in adapters[-1].named_parameters():
                if name.endswith("lora_B"):
                    nn.init.normal_(parameter, std=0.1)
        adapters[0].requires_grad_(False)
        with family.attention(adapters=[(adapter, 1.0) for adapter in adapters]):
            pred = family.predict(latents, torch.tensor([500.0]), text)
            tuning_loss(pred, latents, torch.ones(1), motion_weight=1.0).backward()
        found.append([pred.detach(), *(p.grad for p in adapters[1].parameters())])
    for ours, exact in zip(*found, strict=True):
        assert float((ours - exact).norm()) <= 1e-5 * float(exact.norm()) > 0


def test_without_the_library_one_sentence_says_what_to_do(folder, monkeypatch):
    from fym.families import quantised

    quantised._library.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"bitsandbytes is not installed.*fym\[quantise\]"):
        load_family(str(folder), quantise="int8")
    monkeypatch.undo()
    load_family(str(folder), quantise="int8")


@pytest.mark.parametrize("damage", ["missing", "cut", "shape"])
def test_damaged_weights_are_refused_with_one_sentence(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    folder = save_tiny_wan(tmp_path / "model")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        name = "blocks.1.ffn.net.2.weight"
        tensors[name] = tensors[name][:4].clone()
        save_file({k: v for k, v in tensors.items() if damage == "shape" or k != name}, path)
    with pytest.raises(UserError, match="transformer cannot be loaded"):
        load_family(str(folder), quantise="int8")


def test_a_run_is_recorded_and_its_motion_file_fits_the_exact_model_too(tmp_path, moving_square, capsys):
    folder, clip, run = save_tiny_wan(tmp_path / "model"), tmp_path / "clip.mp4", tmp_path / "run"
    write_clip(clip, moving_square, 8)
    settings = ["heads.rule=topk", "heads.topk=3", "temporal.sparse_frames=9", "spatial.steps=2"]
    settings += ["temporal.steps=2", "generate.steps=1"]
    given = ["train", str(clip), "--prompt", "a", "--model", str(folder), "-o", str(run)]
    given += [part for setting in settings for part in ("--set", setting)]
    assert cli.main([*given, "--set", "model.quantise=nf4"]) == 0
    shown = capsys.readouterr().out
    assert "packed as nf4" in shown and "PyTorch (the layers are quantised)" in shown
    assert 'quantise = "nf4"' in (run / "config.toml").read_text()
    [go] = json.loads((run / "environment.json").read_text())
    assert go["versions"]["bitsandbytes"]
    assert cli.main([*given, "--set", "model.quantise=int8"]) == 2
    assert "model.quantise: 'nf4' there, 'int8' now" in capsys.readouterr().err
    made = {}
    for kind in ("none", "nf4"):
        given = ["generate", "--motion", str(run / "motion.safetensors"), "--prompt", "b", "--steps", "1"]
        given += ["--model", str(folder), "-o", f"{tmp_path / kind}/", "--set", f"model.quantise={kind}"]
        assert cli.main(given) == 0
        made[kind] = [path.read_bytes() for path in sorted((tmp_path / kind).iterdir())]
    assert len(made["nf4"]) == len(made["none"]) > 1 and made["nf4"] != made["none"]
