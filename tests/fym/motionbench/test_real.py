"""The real part: what ships is complete, other benchmarks' folders are read, mistakes are explained."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fym.errors import UserError
from fym.motionbench.categories import CATEGORIES
from fym.motionbench.real import DAVIS_TEXTS, PACKAGED, packaged, read_folder
from fym.video import write_clip

FRAMES = torch.randint(0, 255, (5, 32, 48, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
PROMPTS = ["a robot", "a panda", "a knight"]


def manifest(folder: Path, **changes: Any) -> Path:
    """A folder with one clip; a change to None takes a key away."""
    write_clip(folder / "clip.mp4", FRAMES, 12)
    entry = {"name": "one", "file": "clip.mp4", "category": "object", "prompt": "a dog", "targets": PROMPTS}
    entry = {key: value for key, value in {**entry, **changes}.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps({"cases": [entry]}))
    return folder


def test_what_ships_is_all_there_and_as_its_manifest_says():
    """Every category, whole clips of the stated size, hash, licence; all within 1.5 MB."""
    entries = json.loads((PACKAGED / "manifest.json").read_text("utf-8"))["cases"]
    notices = (PACKAGED / "README.md").read_text("utf-8")
    assert set(Counter(case.category for case in packaged())) == set(CATEGORIES)
    for case, entry in zip(packaged(), entries, strict=True):
        frames, fps = case.clip()
        assert frames.shape == (entry["frames"], entry["height"], entry["width"], 3)
        assert fps == entry["fps"]
        assert len(set(entry["targets"])) >= 3
        assert all(entry[key] for key in ("licence", "licence_url", "attribution", "source", "changes"))
        assert f"`{case.source.path.stem}`" in notices
    files = list(PACKAGED.glob("*.mp4"))
    assert {case.source.path for case in packaged()} == set(files)
    assert sum(f.stat().st_size for f in files) < 1.5e6


def test_another_file_than_the_manifests_is_noticed(tmp_path):
    [case] = read_folder(manifest(tmp_path, sha256="0" * 64))
    with pytest.raises(UserError, match=r"is not the clip of .*one.* the manifest says 000000000000"):
        case.clip()
    right = hashlib.sha256((tmp_path / "clip.mp4").read_bytes()).hexdigest()
    [case] = read_folder(manifest(tmp_path, sha256=right, start=1, frames=3, fps=8))
    frames, fps = case.clip()
    assert (len(frames), fps) == (3, 8.0)
    assert case.clip(24)[0].shape == (3, 24, 24, 3)


def test_a_manifest_may_leave_out_all_but_the_prompts(tmp_path):
    [case] = read_folder(manifest(tmp_path / "mine", category=None))
    assert (case.name, case.category, case.split) == ("mine/one", "unsorted", "test")
    assert [target.prompt for target in case.targets] == PROMPTS
    assert case.scene is None
    assert case.shown == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "case 1 has no prompt"),
        ({"targets": PROMPTS[:2]}, "case 1 has not 3 target prompts"),
        ({"targets": ["a", "b", 3]}, "case 1 has not 3 target prompts"),
        ({"category": "dogs"}, "the category 'dogs', known are camera, object"),
        ({"split": "train"}, "the split 'train', known are development, test"),
        ({"start": "first"}, "case 1: start, frames and fps must be numbers"),
    ],
)
def test_mistakes_in_a_manifest_are_explained(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_folder(manifest(tmp_path, **changes))


def test_a_folder_that_is_no_benchmark_is_explained(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no cases: it has neither a manifest"):
        read_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(UserError, match='it has no list "cases"'):
        read_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        read_folder(tmp_path)


def test_davis_as_it_is(tmp_path):
    """Its own layout with annotations beside it; known sequences have texts, others are unsorted."""
    for kind, name in (
        ("JPEGImages", "480p/bear"),
        ("JPEGImages", "480p/my-cat"),
        ("Annotations", "480p/bear"),
    ):
        folder = tmp_path / "DAVIS" / kind / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(FRAMES.numpy()):
            cv2.imwrite(str(folder / f"{number:05d}.jpg"), frame)
    (tmp_path / "DAVIS" / "JPEGImages" / "1080p" / "bear").mkdir(parents=True)
    bear, cat = read_folder(tmp_path / "DAVIS")
    assert (bear.name, bear.category, len(bear.targets)) == ("DAVIS/bear", "object", 3)
    assert (cat.category, cat.prompt, cat.targets) == ("unsorted", "my cat", ())
    frames, fps = bear.clip()
    assert (tuple(frames.shape), fps) == ((5, 32, 48, 3), 24.0)


def test_the_texts_of_davis_are_complete():
    texts = json.loads(DAVIS_TEXTS.read_text("utf-8"))
    assert len(texts) == 50
    for text in texts.values():
        assert text["category"] in CATEGORIES
        assert len({text["prompt"], *text["targets"]}) >= 4


def test_mtbench_as_it_is(tmp_path):
    """A folder for each case, or one such folder; spaces at the ends of lines are no part of a prompt."""
    case = tmp_path / "MTBench" / "dance"
    write_clip(case / "videos" / "dance.mp4", FRAMES, 24)
    (case / "videos.txt").write_text("videos/dance.mp4")
    (case / "prompts.txt").write_text("A woman on the ground.\n")
    (case / "eval_prompts.txt").write_text("A robot on a stage.  \nA chef.  \nA panda.")
    for root, name in ((tmp_path / "MTBench", "MTBench/dance"), (case, "dance/dance")):
        [found] = read_folder(root)
        assert (found.name, found.category, found.prompt) == (name, "unsorted", "A woman on the ground.")
        assert [t.prompt for t in found.targets] == ["A robot on a stage.", "A chef.", "A panda."]
        assert len(found.clip()[0]) == 5
    (case / "eval_prompts.txt").write_text("\n")
    with pytest.raises(UserError, match=r"eval_prompts.txt cannot be used: it is empty"):
        read_folder(case)
    (case / "prompts.txt").unlink()
    with pytest.raises(UserError, match=r"prompts.txt cannot be used: No such file"):
        read_folder(case)


def test_frames_of_ours_are_the_films(tmp_path):
    """What is decoded is near what was written: the manifest's frames are the clip's."""
    [case] = read_folder(manifest(tmp_path))
    frames = case.clip()[0].float().numpy()
    assert np.abs(frames.mean((1, 2)) - FRAMES.float().numpy().mean((1, 2))).max() < 6
