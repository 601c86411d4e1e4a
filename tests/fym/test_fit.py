"""The planner: what it counts is what runs take, and what it proposes fits."""

import shutil
import weakref

import pytest
import torch

from fym import cli, fit
from fym.config_file import default_config, load_config
from fym.errors import UserError
from fym.families import load_family
from fym.families.skeleton import skeleton
from fym.forecast import Phase, forecast
from fym.gpus import GPUS, named
from tests.tiny_pipelines import save_tiny_wan

WHERE = fit.Target("a GPU", 10.0, 1.0, 1.0, False)


def way(peak, seconds, **options):
    return fit.Fit(options, [Phase("temporal", 0, peak, seconds, 1)], WHERE)


@pytest.mark.parametrize("model", ["wan", "hunyuan_video", "cogvideox-2b"])
def test_the_skeleton_reads_no_weights_and_has_the_models_shapes(tmp_path, tiny_model, model):
    folder = shutil.copytree(tiny_model(model), tmp_path / "model")
    whole = load_family(str(folder), device="cpu")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    bare = skeleton(str(folder), "float32")
    shapes = [{n: (p.shape, p.dtype) for n, p in f.transformer.named_parameters()} for f in (whole, bare)]
    assert shapes[0] == shapes[1] and all(p.is_meta for p in bare.transformer.parameters())
    assert bare.schedule == whole.schedule


def test_dry_run_for_a_gpu_needs_no_weights_and_names_every_knob(
    tmp_path, moving_square, monkeypatch, capsys
):
    from fym.video import write_clip

    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "square.mp4", moving_square, 16)
    folder = save_tiny_wan(tmp_path / "model")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    given = ["train", "square.mp4", "--prompt", "a", "--model", str(folder), "--sparse-frames", "9"]
    assert cli.main([*given, "--plan-for", "rtx4090"]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert cli.main([*given, "--dry-run", "--plan-for", "rtx4090"]) == 0
    out = capsys.readouterr().out
    assert GPUS["rtx4090"].name in out and "not measured" in out and "fits as configured" in out
    assert all(word in out for word in ("text", "encode", "classify", "spatial", "sample", "ffn", "tiled"))
    assert "quantise int8" in out and "quantise nf4" in out and "shard" not in out
    assert "bfloat16 on RTX 4090" in out and "kernels" not in out  # those of this machine
    two = ["--set", "spatial.batch_size=2", "--set", "temporal.batch_size=2"]
    assert cli.main([*given, "--dry-run", "--plan-for", "2xrtx4090", *two]) == 0
    out = capsys.readouterr().out
    assert "on 2 x RTX 4090" in out and "shard true" in out
    assert cli.main([*given, "--dry-run", "--plan-for", "5xrtx4090"]) == 2
    assert "too many for the spatial stage" in capsys.readouterr().err


def test_the_cheapest_way_that_fits_is_proposed():
    ways = [
        way(20, 1.0, **{"tune.recompute": "none"}),
        way(9, 2.0, **{"tune.recompute": "ffn"}),
        way(2, 3.0, **{"tune.recompute": "block"}),
    ]
    advice = dict(fit.tables(ways, default_config(), WHERE)[1][1])["advice"]
    assert advice == "--set tune.recompute=ffn"
    none = dict(fit.tables(ways[:1], default_config(), WHERE)[1][1])["advice"]
    assert none.startswith("nothing fits")


def test_four_bits_are_counted_as_the_packed_model_itself_is(tmp_path):
    """The planner runs int8 and takes nf4 from it."""
    folder = str(save_tiny_wan(tmp_path / "model", heads=4, head_dim=32))
    config = load_config(None, {"model.path": folder, "clip.frames": 17})
    found = fit.ways(skeleton(folder, "bfloat16"), config, (17, 32, 48), WHERE)
    config = load_config(None, {"model.path": folder, "clip.frames": 17, "model.quantise": "nf4"})
    derived = fit.as_configured(
        found, load_config(None, {"model.quantise": "nf4", "tune.recompute": "block"})
    )
    family = skeleton(folder, "bfloat16", "nf4")
    itself = forecast(family, config, fit.Job.of(config, family, (17, 32, 48)), ["block"], host=False)
    bytes_of = [{p.name: (p.weights, p.peak) for p in phases} for phases in (derived.phases, itself["block"])]
    assert bytes_of[0].items() <= bytes_of[1].items() and len(bytes_of[0]) >= 5
    exact = fit.as_configured(found, load_config(None, {"tune.recompute": "block"}))
    assert [a.weights > b.weights for a, b in zip(exact.phases, derived.phases, strict=True)][-4:] == [
        True
    ] * 4


def test_as_many_blocks_are_offloaded_as_it_takes(tmp_path):
    """On a GPU too small by a quarter of the weights; what is counted is what a loaded model takes."""
    folder = str(save_tiny_wan(tmp_path / "model", heads=4, head_dim=64, layers=12))
    config = load_config(None, {"model.path": folder, "tune.recompute": "block"})
    family = skeleton(folder, "bfloat16")
    job = fit.Job.of(config, family, (5, 32, 48))
    phases = forecast(family, config, job, ["block"], host=False)["block"]
    before = phases[-1]
    most = max(phase.peak for phase in phases)
    small = fit.Target("a GPU", most - before.weights / 4, 1e12, 0.0, False, 1e9)
    [found] = fit._offloading(fit.Fit({"tune.recompute": "block"}, phases, small), family, 0)
    count = int(found.options["model.offload"])
    assert found.fits and 3 < count < 12
    exact, less = (load_family(folder, dtype="bfloat16", offload=n) for n in (0, count))
    taken = [sum(p.nbytes for p in family.transformer.parameters()) for family in (exact, less)]
    homes = [sum(map(len, home)) for home in less.offload._homes]
    after = found.phases[-1]
    assert before.weights - after.weights == pytest.approx(taken[0] - taken[1] - 2 * homes[0], rel=1e-3)
    assert after.name == "sample" and after.moves == sum(homes)
    assert found.phases[-2].name == "temporal" and found.phases[-2].moves == 2 * after.moves
    slow = fit.replace(found, target=fit.replace(small, link=1.0))
    assert slow.seconds > 1e6 > found.seconds


def test_several_processes_share_the_steps_and_the_weights(tmp_path):
    """One sample in two bands, three samples as two and one; each process has its part of every matrix."""
    folder = str(save_tiny_wan(tmp_path / "model", heads=4, head_dim=64, layers=12))
    given = {"model.path": folder, "tune.recompute": "block", "spatial.batch_size": 3}
    config = load_config(None, given | {"temporal.batch_size": 1, "model.shard": True})
    family = skeleton(folder, "bfloat16")
    two = fit.replace(WHERE, flops=1e12, processes=2)
    alone, shared = (fit.ways(family, config, (17, 64, 64), where) for where in (WHERE, two))
    assert not any("model.shard" in way.options for way in alone)
    as_it_is = fit.as_configured(shared, load_config(None, {"tune.recompute": "block"}))
    before = {phase.name: phase for phase in fit.as_configured(alone, config).phases}
    for phase in as_it_is.phases:
        part = {"spatial": 2 / 3, "temporal": 1 / 2}.get(phase.name, 1)
        assert phase.flops == pytest.approx(part * before[phase.name].flops)
        assert (phase.peak < before[phase.name].peak) == (part < 1)
        assert phase.weights == before[phase.name].weights
    after = fit.as_configured(shared, config)
    matrices = [p.nbytes for p in family.transformer.blocks.parameters() if p.ndim == 2]
    for one, other in zip(as_it_is.phases, after.phases, strict=True):
        assert one.name in ("text", "encode") or one.weights - other.weights == pytest.approx(
            sum(matrices) * (1 / 2 - 2 / 12), rel=1e-3
        )
    assert after.phases[-1].moves == sum(matrices) // 2


@pytest.mark.parametrize(("text", "count"), [("rtx4090", 1), ("2xrtx4090", 2), ("16xrtx4090", 16)])
def test_gpus_are_named_alone_or_by_their_number(text, count):
    assert named(text) == (GPUS["rtx4090"], count)


@pytest.mark.parametrize("text", ["rtx1", "0xrtx4090", "xrtx4090", "2x", "", "2 rtx4090"])
def test_other_gpus_are_refused_with_those_that_are_known(text):
    with pytest.raises(UserError, match=r"is no known GPU: known are rtx3060, .*2xrtx4090"):
        named(text)


def test_a_model_that_always_works_in_tiles_is_found_as_configured():
    found = [way(1, 1.0, **{"tune.recompute": "none"})]
    assert fit.as_configured(found, load_config(None, {"model.vae": "tiled"})) is found[0]


def test_freed_encoders_are_gone_and_come_back_the_same(tmp_path, moving_square):
    family = load_family(str(save_tiny_wan(tmp_path / "model")), device="cpu")
    before = family.encode_prompts(["a ball"]), family.encode_video(moving_square)
    watched = [weakref.ref(family.pipeline.text_encoder), weakref.ref(family.pipeline.vae)]
    family.free_encoders()
    assert all(reference() is None for reference in watched)
    assert torch.equal(family.encode_prompts(["a ball"]), before[0]) and family.pipeline.text_encoder is None
    assert torch.equal(family.encode_video(moving_square), before[1])
    family._texts.clear()
    assert torch.equal(family.encode_prompts(["a ball"]), before[0])


@pytest.mark.parametrize(
    ("called", "key"),
    [
        ("NVIDIA GeForce RTX 3060", "rtx3060"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_a_card_has_its_makers_rate(called, key):
    assert fit._makers_rates(called) == (GPUS[key].flops, GPUS[key].link)
    assert fit._makers_rates("NVIDIA T4")[0] not in {gpu.flops for gpu in GPUS.values()}
