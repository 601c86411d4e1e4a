"""The motion file: an ordinary LoRA for others, complete for us, refused where it does not belong."""

import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fym.errors import UserError
from fym.families import load_family
from fym.motion_file import check_matches, load_motion_file, save_motion_file, spatial_path


@pytest.fixture
def saved(tmp_path, tiny_family, make_adapter):
    path = tmp_path / "motion.safetensors"
    about = {"model_id": tiny_family.model_id, "model_hash": tiny_family.model_hash, "caption": "a ball"}
    adapters = make_adapter([[0, 2], [1]]), make_adapter([[1], [0, 2]], seed=1)
    save_motion_file(path, *adapters, about)
    return path, adapters


def test_keys_are_those_of_comfyui_and_alpha_is_always_there(saved):
    path, _ = saved
    for file, layers in ((path, 2), (path.with_name("spatial.safetensors"), 2)):
        tensors = load_file(file)
        stems = {f"diffusion_model.blocks.{n}.self_attn.{p}" for n in range(layers) for p in "qkvo"}
        assert set(tensors) == {
            f"{stem}.{end}" for stem in stems for end in ("lora_A.weight", "lora_B.weight", "alpha")
        }
        assert tensors["diffusion_model.blocks.0.self_attn.q.alpha"].item() == 1.5
        assert tensors["diffusion_model.blocks.0.self_attn.q.lora_A.weight"].shape == (3, 36)
        assert tensors["diffusion_model.blocks.0.self_attn.q.lora_B.weight"].shape == (36, 3)
    rows = load_file(path)["diffusion_model.blocks.1.self_attn.v.lora_B.weight"].abs().sum(1)
    assert (rows[:12] == 0).all() and (rows[12:24] > 0).all() and (rows[24:] == 0).all()


def test_it_comes_back_as_it_was(saved):
    path, (temporal, spatial) = saved
    found = load_motion_file(path)
    for one, other in ((found.temporal, temporal), (found.spatial, spatial)):
        assert [h.tolist() for h in one.heads] == [h.tolist() for h in other.heads]
        assert (one.rank, one.alpha, one.targets) == (other.rank, other.alpha, other.targets)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert not any(p.requires_grad for p in one.parameters())
    assert found.metadata["caption"] == "a ball" and found.metadata["versions"]["torch"]


def test_saving_neither_aliases_nor_changes_the_adapter(saved, tiny_family):
    path, (temporal, spatial) = saved
    before = [p.detach().clone() for p in temporal.parameters()]
    load_motion_file(path).temporal.layer(0)["q"].lora_B.data.zero_()
    save_motion_file(path, temporal, spatial, {"model_id": "m", "model_hash": "h"})
    assert all(torch.equal(a, b) for a, b in zip(before, temporal.parameters(), strict=True))


def test_a_file_without_its_neighbour_or_with_a_foreign_one_has_no_spatial_adapter(
    saved, tmp_path, make_adapter
):
    path, (temporal, _) = saved
    alone = shutil.copy(path, tmp_path / "elsewhere.safetensors")
    assert load_motion_file(alone).spatial is None
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "motion.safetensors"
    save_motion_file(other, temporal, make_adapter([[0], [0]]), {"model_id": "", "model_hash": ""})
    shutil.copy(spatial_path(other), spatial_path(path))
    assert load_motion_file(path).spatial is None
    assert spatial_path(tmp_path / "x.safetensors").name == "x.spatial.safetensors"


def test_the_same_adapters_make_the_same_bytes(saved, tmp_path, tiny_family):
    path, adapters = saved
    with safe_open(path, "pt") as file:
        assert re.search('"kind": "temporal"', file.metadata()["fym"])
    about = {"caption": "a ball", "model_hash": tiny_family.model_hash, "model_id": tiny_family.model_id}
    again = tmp_path / "again" / "motion.safetensors"
    save_motion_file(again, *adapters, about)
    assert again.read_bytes() == path.read_bytes()


def test_the_motion_of_another_model_is_refused(saved, tiny_wan, tiny_family):
    motion = load_motion_file(saved[0])
    check_matches(motion, tiny_family)
    other = load_family(str(tiny_wan(seed=1)))
    with pytest.raises(UserError, match=f"belongs to another model.*{tiny_family.model_id}.*--model"):
        check_matches(motion, other)


def test_what_is_no_motion_file_is_named(saved, tmp_path):
    path, _ = saved
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    for bad, message in (
        (tmp_path / "gone.safetensors", "no such file"),
        (foreign, "its header"),
        (text, "not a motion file"),
        (cut, "not a motion file"),
        (path.with_name("spatial.safetensors"), "adapter of the look"),
    ):
        with pytest.raises(UserError, match=message):
            load_motion_file(bad)
