"""`fym motionbench list` and `render`: what they print and write, and that a stopped one goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fym.cli import main
from fym.embedded.scenes import render_with_masks
from fym.motionbench import render as rendering
from fym.motionbench.case import frames_hash
from fym.motionbench.suite import cases
from fym.video import read_clip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["motionbench", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_for_programs_has_all_but_the_frames(capsys):
    record = json.loads(run(capsys, "list", "--json", "--part", "synthetic", "--split", "test"))
    assert (record["dataset"], record["version"]) == ("fym-motionbench", "2")
    assert {row["split"] for row in record["cases"]} == {"test"}
    for row in record["cases"]:
        assert row["prompt"]
        assert len(row["sha256"]) == 64
        assert len(row["targets"]) >= 3
        assert all(target["prompt"] and target["wanted"] for target in row["targets"])


def test_the_list_for_people(capsys, tmp_path):
    for name in ("bear", "my-cat"):
        (tmp_path / "JPEGImages" / "480p" / name).mkdir(parents=True)
    out = run(capsys, "list", "--real", str(tmp_path), "--part", "real")
    assert "fym-motionbench 2: 14 cases" in out
    assert "object, real" in out
    assert "unsorted, real (1)" in out
    assert "no prompts" in out
    assert "orbit" not in out


def test_what_is_written_is_the_motion(capsys, tmp_path):
    """Clip, masks, centres and camera of a case, at twice the size, agree with one another."""
    run(
        capsys,
        "render",
        "camera/dolly zoom",
        "objects/moon",
        "human/tumble",
        "-o",
        str(tmp_path),
        "--size",
        "96",
    )
    for case in cases(names=["camera/dolly zoom", "objects/moon", "human/tumble"]):
        folder = tmp_path / case.file_name
        record = json.loads((folder / "case.json").read_text("utf-8"))
        truth = np.load(folder / "truth.npz")
        assert record["sha256"] == frames_hash(case.clip(96)[0]) == case.sha256(96)
        clip = read_clip(folder / "clip.mp4")
        assert clip.frames.shape == (49, 96, 96, 3)
        assert (clip.frames.float() - case.clip(96)[0].float()).abs().mean() < 6
        masks = np.unpackbits(truth["masks"], axis=-1, count=96 * 96).reshape(-1, 49, 96, 96)
        exact = render_with_masks(case.scene, size=96)[1].numpy()
        assert np.array_equal(masks, exact > 0.5)
        y, x = np.nonzero(masks[-1, 20])
        assert np.allclose([x.mean() + 0.5, y.mean() + 0.5], truth["centres"][-1, 20], atol=0.5)
        assert truth["points"].shape[1:] == (49, 2)
        assert truth["visible"].shape == truth["points"].shape[:2]
        assert truth["camera_zoom"].max() == pytest.approx(
            1.8 if case.category == "camera" else 1.0, rel=1e-3
        )
        assert ("joints" in truth) == (case.category == "human")


def test_joints_are_where_the_person_is():
    [case] = cases(names=["human/cartwheel"])
    truth = rendering.truth(case.scene, 96)
    masks = render_with_masks(case.scene, size=96)[1][0].numpy()
    x, y = np.floor(truth["joints"]).astype(int).transpose(2, 0, 1)
    assert (masks[np.arange(49)[:, None], y, x] > 0.4).mean() > 0.99


def test_rendering_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """A crash leaves whole folders or none; only what is missing or in another size is made again."""
    chosen = cases(names=["object/wave", "object/hook"])

    def fail(path: Path, *_: object) -> None:
        raise KeyboardInterrupt

    done = list(rendering.render_cases(chosen[:1], tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "write_file", fail)
        with pytest.raises(KeyboardInterrupt):
            list(rendering.render_cases(chosen, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["object-wave"]
    assert [kept for _, kept in done] == [False]
    assert [kept for _, kept in rendering.render_cases(chosen, tmp_path)] == [True, False]
    assert [kept for _, kept in rendering.render_cases(chosen, tmp_path)] == [True, True]
    assert [kept for _, kept in rendering.render_cases(chosen, tmp_path, size=64)] == [False, False]
    (tmp_path / "object-wave" / "clip.mp4").unlink()
    assert [kept for _, kept in rendering.render_cases(chosen, tmp_path, size=64)] == [False, True]


def test_a_real_clip_is_written_without_a_truth(tmp_path, capsys):
    run(capsys, "render", "real/apple", "-o", str(tmp_path))
    names = sorted(path.name for path in (tmp_path / "real-apple").iterdir())
    assert names == ["case.json", "clip.mp4"]


def test_mistakes_are_explained(tmp_path, capsys):
    assert main(["motionbench", "render", "object/none", "-o", str(tmp_path)]) == 2
    assert "there is no case 'object/none'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["motionbench", "render", "object/wave", "-o", str(tmp_path / "file")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
