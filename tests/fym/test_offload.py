"""Blocks whose weights come just before they run: the same bits, little on the device, one copy ahead.

There is no GPU here: the device is the CPU, and the copies go from CPU memory to CPU memory.
"""

import gc
import weakref

import pytest
import torch
from diffusers.hooks import apply_group_offloading, group_offloading
from torch.utils._python_dispatch import TorchDispatchMode

from fym import cli
from fym.adapters import HeadLora
from fym.config_file import load_config
from fym.families import load_family
from fym.families.offload import saved_bytes, spread
from fym.families.quantised import num_weights
from fym.losses import tuning_loss
from fym.state import check_same_run
from fym.video import write_clip
from tests.tiny_pipelines import save_tiny_wan

CPU = torch.device("cpu")
LAYERS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_wan(tmp_path_factory.mktemp("offload") / "model", head_dim=32, layers=LAYERS))


def adapter_for(family):
    torch.manual_seed(1)
    heads = [list(range(family.num_heads))] * family.num_layers
    sizes = {"num_heads": family.num_heads, "head_dim": family.head_dim, "targets": family.targets}
    adapter = HeadLora(heads, **sizes, rank=4, alpha=4)
    for name, parameter in adapter.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    return adapter


def steps(family, count=2):
    """Prediction and gradients of each of some steps, one after the other on one family."""
    adapter, found = adapter_for(family), []
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    for seed in range(count):
        latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
        with family.attention(adapters=[(adapter, 1.0)]):
            pred = family.predict(latents, torch.tensor([500.0]), text)
            tuning_loss(pred, latents, torch.ones(1), motion_weight=1.0).backward()
        found += [pred.detach(), *(p.grad.clone() for p in adapter.parameters())]
    return found


@pytest.mark.parametrize(("quantise", "count"), [("none", -1), ("none", 3), ("int8", -1), ("nf4", 4)])
def test_predictions_and_gradients_have_the_same_bits(folder, quantise, count):
    if quantise != "none":
        pytest.importorskip("bitsandbytes")
    found = []
    for offload in (0, count):
        family = load_family(folder, quantise=quantise, offload=offload)
        family.recompute = "block"
        found.append(steps(family))
    assert family.offload.loads > 2
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


class LateStream(TorchDispatchMode):
    """In the place of a CUDA stream: what is copied on it arrives when somebody waits for it, not before."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.copy_.default:
            return func(*args, **(kwargs or {}))
        self.copies.append(args[:2])
        return args[0]

    def wait_stream(self, other):
        pass

    def record_event(self):
        event, self.copies = self.copies, []
        return event

    @staticmethod
    def wait_event(event):
        while event:
            place, value = event.pop()
            place.copy_(value)


def test_a_block_waits_for_its_weights(folder, monkeypatch):
    """The other tests copy as early as a stream could, this one as late: whatever a GPU does lies between."""
    stream, found = LateStream(), []
    for late in (False, True):
        family = load_family(folder, offload=-1)
        if late:
            family.offload._stream = stream
            monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        family.recompute = "block"
        found.append(steps(family, 3))
    assert family.offload._copied == [[], []]  # events, all waited for
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LateStream, "wait_event", lambda *_: None)
        assert not all(torch.equal(a, b) for a, b in zip(found[0], steps(family, 3), strict=True))


@pytest.mark.parametrize("name", ["wan-2.2-14b", "hunyuan_video", "cogvideox-5b"])
def test_other_families_quantised_in_bfloat16(tiny_model, name):
    """A step and a clip, for which Wan 2.2's two experts share the slots; three blocks or four."""
    pytest.importorskip("bitsandbytes")
    found = []
    for offload in (0, -1):
        family = load_family(str(tiny_model(name)), dtype="bfloat16", quantise="int8", offload=offload)
        family.recompute, adapter = "block", adapter_for(family)
        text, scale = family.encode_prompts(["a ball"]), family.pipeline.vae_scale_factor_spatial
        size = family.default_height // scale, family.default_width // scale
        latents = torch.randn(1, family.transformer.config.in_channels, 3, *size)
        with family.attention(adapters=[(adapter, 1.0)]):
            pred = family.predict(latents, torch.tensor([900.0]), text)
            pred.square().mean().backward()
            clip = family.sample(
                text,
                text,
                generator=torch.Generator().manual_seed(0),
                num_frames=family.default_frames,
                height=family.default_height,
                width=family.default_width,
                steps=3,
                guidance_scale=5.0,
            )
        found.append([*(p.grad for p in adapter.parameters()), clip])
    assert family.offload.loads >= 2
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


def test_a_block_has_its_weights_only_while_it_runs(folder):
    family, whole = load_family(folder, offload=-1), load_family(folder)
    blocks = list(family.transformer.blocks)

    def weights():
        return [block.ffn.net[2].weight is not None for block in blocks]

    seen = []
    for block in blocks:
        block.ffn.register_forward_hook(lambda *_: seen.append(weights()))
    family.recompute = "block"
    assert not any(weights())
    steps(family, 1)
    assert not any(weights())
    order = [row.index(True) for row in seen]  # the checkpoint leaves a block in the middle of its second run
    assert [sum(row) for row in seen] == [1] * len(seen) and order[:LAYERS] == list(range(LAYERS))
    assert num_weights(family.transformer) == num_weights(whole.transformer)


def test_only_two_blocks_are_on_the_device_beside_what_stays(folder):
    family, whole = load_family(folder, offload=-1), load_family(folder)
    moved, saved = saved_bytes(list(whole.transformer.blocks))
    family.recompute = "block"
    steps(family, 1)
    slots = family.offload._slots
    before, after = (sum(p.nbytes for p in f.transformer.parameters()) for f in (whole, family))
    assert len(slots) == 2 and saved == moved - sum(slot.nbytes for slot in slots) > 0
    assert before - after == pytest.approx(moved, rel=1e-3)  # but for bytes that align
    held = [weakref.ref(slot) for slot in slots]
    del family, slots
    gc.collect()
    assert all(reference() is None for reference in held)


def test_after_one_step_every_block_is_copied_while_the_one_before_it_runs(folder):
    family = load_family(folder, offload=-1)
    family.recompute = "block"
    steps(family, 1)
    before = family.offload.loads, family.offload.late
    steps(family, 3)
    assert family.offload.late == before[1]
    # Forward and backward find the two blocks there that ran last.
    assert family.offload.loads - before[0] == 3 * 2 * (LAYERS - 2)
    text = torch.randn(1, 5, 32)
    late = []
    for _ in range(3):
        with torch.no_grad(), family.attention():
            family.predict(torch.randn(1, 16, 3, 4, 6), torch.tensor([500.0]), text)
        late.append(family.offload.late)
    assert late[2] == late[1] <= late[0] + 1


def test_a_weight_that_was_written_over_is_never_used(folder):
    """Without recomputing, a block's backward pass would find another block's weights in the slot."""
    family = load_family(folder, offload=-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        steps(family, 1)


def test_the_blocks_are_spread_evenly():
    assert spread("abcdefgh", 4) == ["a", "c", "e", "g"] and spread("abc", -1) == ["a", "b", "c"]
    assert spread("abc", 9) == ["a", "b", "c"] and spread("abc", 0) == []


def test_diffusers_own_offloading_leaves_every_block_on_the_device_after_a_backward_pass(folder, monkeypatch):
    """Why it is not used: non-reentrant checkpoints end a block's second run by an exception, and its hook
    takes weights away only after a run that returns. Where this fails, it can be."""
    on, group = set(), group_offloading.ModuleGroup
    onload, offload = group.onload_, group.offload_
    monkeypatch.setattr(group, "onload_", lambda self: (on.add(self), onload(self))[1])
    monkeypatch.setattr(group, "offload_", lambda self: (on.discard(self), offload(self))[1])
    transformer = load_family(folder).transformer
    transformer.enable_gradient_checkpointing()
    options = {"offload_type": "block_level", "num_blocks_per_group": 1}
    apply_group_offloading(transformer, onload_device=CPU, offload_device=CPU, **options)
    on.clear()
    latents = torch.randn(1, 16, 3, 4, 6, requires_grad=True)
    out = transformer(latents, torch.tensor([500.0]), torch.randn(1, 5, 32), return_dict=False)[0]
    assert not on
    out.sum().backward()
    assert len(on) == LAYERS


def test_runs_and_clips_are_made_with_it(tmp_path, moving_square, capsys):
    """A run may go on without it; tuning without recomputing is refused beforehand."""
    folder, clip, run = save_tiny_wan(tmp_path / "model"), tmp_path / "clip.mp4", tmp_path / "run"
    write_clip(clip, moving_square, 8)
    settings = ["model.offload=-1", "heads.rule=topk", "heads.topk=3", "temporal.sparse_frames=9"]
    settings += ["spatial.steps=2", "temporal.steps=2", "generate.steps=1"]
    given = ["train", str(clip), "--prompt", "a", "--model", str(folder), "-o", str(run)]
    given += [part for setting in settings for part in ("--set", setting)]
    assert cli.main(given) == 2
    assert "Add --set tune.recompute=block" in capsys.readouterr().err
    assert cli.main([*given, "--set", "tune.recompute=block"]) == 0
    check_same_run(load_config(run / "config.toml", {"model.offload": 0}), run)
    clips = []
    for offload in (0, -1):
        given = ["generate", "--motion", str(run / "motion.safetensors"), "--prompt", "b", "--steps", "2"]
        given += ["--model", str(folder), "-o", f"{tmp_path / str(offload)}/"]
        assert cli.main([*given, "--set", f"model.offload={offload}"]) == 0
        clips.append([path.read_bytes() for path in sorted((tmp_path / str(offload)).iterdir())])
    assert clips[0] == clips[1] and len(clips[0]) > 1
