"""Checkpoints: whole or passed over, whatever kills the process that writes them."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from fym.checkpoint import Checkpoint, keep_newest, load_checkpoint, save_checkpoint


def numbered(step):
    tensors = {
        "a": torch.full((3, 2), float(step)),
        "none": torch.zeros(0, 4),
        "g": torch.Generator().get_state(),
    }
    return Checkpoint(f"0-spatial-{step:06d}", tensors, {"stage": "spatial", "step": step})


def test_what_is_saved_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    saved = numbered(7)
    save_checkpoint(tmp_path, saved, keep=2)
    found = load_checkpoint(tmp_path)
    assert found.name == saved.name and found.record == saved.record
    assert found.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(found.tensors[k], saved.tensors[k]) for k in saved.tensors)


def test_only_the_newest_are_kept_and_left_overs_of_a_killed_writer_go(tmp_path):
    (tmp_path / ".0-spatial-000001.safetensors.x7f.part").write_bytes(b"half")
    for step in range(1, 6):
        save_checkpoint(tmp_path, numbered(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0-spatial-000004.safetensors",
        "0-spatial-000005.safetensors",
        "latest",
    ]


def test_what_a_kill_left_over_goes_but_never_the_latest(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, numbered(step), keep=5)
    (tmp_path / "latest").write_text("0-spatial-000001.safetensors")
    keep_newest(tmp_path, 2)
    assert sorted(p.stem[-1] for p in tmp_path.glob("*.safetensors")) == ["1", "4", "5"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "text"])
def test_a_broken_newest_checkpoint_is_passed_over(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, numbered(step), keep=5)
    path = tmp_path / "0-spatial-000002.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text("not tensors")
    assert load_checkpoint(tmp_path).record["step"] == 1


def test_a_lost_or_wrong_pointer_does_no_harm(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, numbered(step), keep=5)
    for content in ("nonsense", ""):
        (tmp_path / "latest").write_text(content)
        assert load_checkpoint(tmp_path).record["step"] == 2
    (tmp_path / "latest").unlink()
    assert load_checkpoint(tmp_path).record["step"] == 2


def _save_for_ever(folder):
    blob = torch.zeros(200_000)
    step = 0
    while True:
        step += 1
        tensors = {"a": blob + step}
        checkpoint = Checkpoint(f"0-spatial-{step:06d}", tensors, {"stage": "spatial", "step": step})
        save_checkpoint(folder, checkpoint, keep=2)


def test_kill_9_at_random_moments_leaves_a_loadable_checkpoint(tmp_path):
    """Twenty processes killed while they write: the last checkpoint loads and is one that was written."""
    chance = random.Random(0)
    # A plain fork of this process would copy the locks of its threads and could hang.
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["fym.checkpoint"])
    for number in range(20):
        folder = tmp_path / str(number)
        process = fork.Process(target=_save_for_ever, args=(folder,), daemon=True)
        process.start()
        deadline = time.monotonic() + 30
        while not (folder / "latest").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = load_checkpoint(folder)
        assert found is not None and (found.tensors["a"] == found.record["step"]).all()
