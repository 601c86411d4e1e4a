"""The ablation's machinery: what a clip scores, pairs and intervals, claims, results that survive a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ablation, transfer
from fym.embedded.scenes import DEVELOPMENT, TEST, Ground, render, unseen_scene


def clip_of(motion: str, target: transfer.Target) -> torch.Tensor:
    """What a perfect transfer would look like."""
    scene = unseen_scene(motion)
    things = tuple(replace(t, shape=target.shape, colour=target.colour) for t in scene.things)
    look, _, colour = target.background.partition(" ")
    kind = look if colour else ("plain" if things else "photo")
    ground = Ground(colour or look, kind, seed=2, angle=0.3)
    return render(replace(scene, things=things, ground=ground))


@pytest.mark.parametrize("motion", ["bounce", "camera round"])
def test_a_perfect_transfer_scores_full_marks(motion: str) -> None:
    scene = unseen_scene(motion)
    for target in transfer.targets(scene):
        row = ablation.figures(transfer.score(clip_of(motion, target), scene, target))
        assert row["cosine"] > 0.9
        assert (row["right"], row["leaked"]) == (1.0, 0.0)


def test_the_reference_itself_is_all_leak_and_a_frozen_frame_has_no_motion() -> None:
    scene, target = unseen_scene("wave"), transfer.OBJECTS[0]
    frames = render(scene)
    row = ablation.figures(transfer.score(frames, scene, target))
    assert (row["right"], row["leaked"]) == (0.0, 1.0)
    assert transfer.score(frames[:1].expand_as(frames), scene, target)["cosine"] == 0.0


def test_the_shuffled_control_knows_another_motion() -> None:
    scene, target = unseen_scene("wave"), transfer.OBJECTS[0]
    row = json.loads(json.dumps(transfer.score(clip_of("wave", target), scene, target)))
    assert transfer.cosine_with(row, scene) > 0.9
    assert transfer.cosine_with(row, unseen_scene("throw")) < 0.5


def test_no_target_shares_anything_with_its_reference() -> None:
    for motion in (*DEVELOPMENT, *TEST):
        scene = unseen_scene(motion)
        for target in transfer.targets(scene):
            assert target.background != scene.background
            assert not scene.things or (target.shape != scene.shape and target.colour != scene.colour)


def test_intervals_pair_clips_and_cover_motions() -> None:
    """Equal differences leave no doubt; differences between motions count more than those between clips."""
    assert ablation.interval([np.full(9, 0.25)] * 4) == (0.25, 0.25)
    rng = np.random.default_rng(0)
    clips = [rng.normal(0.0, 0.1, 9) for _ in range(12)]
    motions = [np.full(9, value) for value in rng.normal(0.0, 0.1, 12)]
    width = {name: np.ptp(ablation.interval(d)) for name, d in (("clips", clips), ("motions", motions))}
    assert width["clips"] < 0.06 < width["motions"] < 0.2


def test_objects_and_cameras_are_summed_up_apart() -> None:
    assert ablation.groups(["wave", "camera turn", "two leaps"]) == {
        "objects": ["wave", "two leaps"],
        "camera": ["camera turn"],
    }
    assert len(ablation.groups(list(TEST))["objects"]) >= 12


def test_variants_are_names_or_settings() -> None:
    assert ablation.variant_of("full") == ({}, [])
    assert ablation.variant_of("temporal.rank=16,spatial.steps=0")[1] == [
        "temporal.rank=16",
        "spatial.steps=0",
    ]
    with pytest.raises(SystemExit, match="known: full"):
        ablation.variant_of("everything")


def test_every_variant_is_a_valid_configuration_that_differs_from_full() -> None:
    full = transfer.run_config("bounce", Path("x"), {}, [])
    for name, overrides in ablation.VARIANTS.items():
        if overrides:
            assert transfer.run_config("bounce", Path("x"), overrides, []) != full, name


def test_a_claim_ends_with_its_process_and_is_alone_while_it_lasts(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.ablation import claimed\n"
        "with claimed(Path(sys.argv[1])) as mine:\n    print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert other.stdout is not None and other.stdout.readline() == b"True\n"
    with ablation.claimed(tmp_path) as mine:
        assert not mine
    other.kill()
    other.wait()
    with ablation.claimed(tmp_path) as mine:
        assert mine


def test_results_are_kept_and_only_what_is_missing_is_made(tmp_path: Path, monkeypatch) -> None:
    made = []

    def generate(family, prompts, *, motion, seeds):
        made.append((prompts[0], seeds[0]))
        return [torch.zeros(49, 48, 48, 3, dtype=torch.uint8)]

    monkeypatch.setattr(ablation, "generate", generate)
    work = ablation.Work(tmp_path, "embedded", [])
    work.run("base model", "bounce")
    assert len(made) == 9
    lost = work.result(work.folder("base model", "bounce"), 1, 2)
    lost.unlink()
    work.run("base model", "bounce")
    assert made[9:] == [(transfer.OBJECTS[1].prompt, 2)]
    found = ablation.summary(work, ["full", "base model"], ["bounce"])
    assert list(found) == ["base model"] and found["base model"]["clips"] == 9
    table = ablation.table({"variants": found, "ceilings": {"frozen frame": 0.0}})
    assert "| base model | 0.00 |" in table
    assert work.folder("full", "bounce") != work.folder("temporal.rank=8", "bounce")
