"""Every family end to end on a tiny random pipeline on disk: train, classify, generate, export, reload."""

import json

import pytest
import torch
from tiny_pipelines import MODELS

from fym import cli
from fym.convert import convert
from fym.families import load_family
from fym.generate import generate
from fym.motion_file import check_matches, load_motion_file
from fym.video import write_clip

LAYERS = {"hunyuan_video": 3}


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory, tiny_model, moving_square):
    """(name, model's folder, run directory) after `fym train` of two short stages."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model(request.param)
    write_clip(folder / "clip.mp4", moving_square, 8)
    settings = {
        "heads.rule": "topk",
        "heads.topk": 3,
        "temporal.sparse_frames": 9,
        "spatial.steps": 3,
        "temporal.steps": 3,
        "spatial.learning_rate": 0.05,
        "temporal.learning_rate": 0.05,
        "generate.steps": 1,
    }
    arguments = ["train", str(folder / "clip.mp4"), "--prompt", "a square moves", "--model", str(model)]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    assert cli.main([*arguments, "-o", str(folder / "run")]) == 0
    return request.param, model, folder / "run"


def test_both_stages_learned_something_on_the_heads_that_were_found(trained):
    name, model, run = trained
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["spatial"] * 3 + ["temporal"] * 3
    assert all(row["grad_norm"] > 0 for row in rows)
    heads = json.loads((run / "heads.json").read_text())
    assert len(heads["rho"]) == LAYERS.get(name, 2) and all(rho > 0 for row in heads["rho"] for rho in row)
    motion = load_motion_file(run / "motion.safetensors")
    assert sum(len(heads) for heads in motion.temporal.heads) == 3
    assert motion.metadata["family"] == name.partition("-")[0]
    check_matches(motion, load_family(str(model), dtype="float32"))


def test_clips_equal_those_of_plain_diffusers_with_the_exported_file(trained, tmp_path):
    """The whole pipeline with diffusers' own loader, attention and prompt encoding; and without the file.

    The last of the three steps is below the boundary of Wan 2.2's experts.
    """
    _, model, run = trained
    family = load_family(str(model), dtype="float32", device="cpu")
    motion = load_motion_file(run / "motion.safetensors")
    made = {}
    for key, used in {"base": None, "motion": motion}.items():
        [made[key]] = generate(family, ["a red ball"], motion=used, seeds=[3], steps=3)
    convert([run / "motion.safetensors"], tmp_path / "x.safetensors", layout="diffusers")
    plain = load_family(str(model), dtype="float32", device="cpu").pipeline
    options = {
        "prompt": "a red ball",
        "generator": torch.Generator().manual_seed(3),
        "num_inference_steps": 3,
        "guidance_scale": family.defaults.guidance_scale,
        "max_sequence_length": family.defaults.max_sequence_length,
        "num_frames": family.default_frames,
        "height": family.default_height,
        "width": family.default_width,
        "output_type": "np",
    }
    theirs = {"base": plain(**options).frames[0]}
    plain.load_lora_weights(tmp_path / "x.safetensors")
    theirs["motion"] = plain(**options | {"generator": torch.Generator().manual_seed(3)}).frames[0]
    for key, clip in theirs.items():
        difference = made[key].int() - torch.from_numpy(clip * 255).round().int()
        assert difference.abs().max() <= 1, key  # a pixel at the edge between two integers
    assert (made["motion"].int() - made["base"].int()).abs().max() > 3
