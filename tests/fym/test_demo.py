"""The demo: its clips are what their manifest says, and the whole job runs and shows its results."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np

from fym.console import Console
from fym.demo import job
from fym.demo.__main__ import main
from fym.embedded import scenes
from fym.embedded.checker import read_clip as read_object
from fym.embedded.checker import velocity_cosine
from fym.video import read_clip

SHORT = {"spatial.steps": 2, "temporal.steps": 3, "temporal.sparse_frames": 5, "heads.seeds": 1}
SHORT |= {"heads.rule": "topk", "heads.topk": 3, "generate.steps": 2}


def test_the_packaged_clip_is_what_the_manifest_says():
    """File, hash, frames, size, licence and track agree, and the licence note names the source."""
    [entry] = json.loads((job.CLIPS / "manifest.json").read_text())
    path = job.CLIPS / entry["file"]
    clip = read_clip(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert tuple(clip.frames.shape) == (entry["frames"], entry["height"], entry["width"], 3)
    assert clip.fps == entry["fps"] and len(entry["track"]) == entry["frames"]
    assert entry["licence"] == "CC BY 3.0" and "Blender Foundation" in entry["attribution"]
    assert entry["attribution"] in (job.CLIPS / "README.md").read_text()


def test_the_measured_track_lies_on_the_apple():
    """At each point of the track the picture is apple: more red than green and blue."""
    [entry] = json.loads((job.CLIPS / "manifest.json").read_text())
    frames = read_clip(job.CLIPS / entry["file"]).frames.numpy().astype(int)
    for frame, (x, y) in zip(frames, entry["track"], strict=True):
        top = max(0, round(y) - 10)
        patch = frame[top : max(top + 5, round(y) + 10), round(x) - 10 : round(x) + 10].reshape(-1, 3)
        red, green, blue = np.median(patch, axis=0)
        assert red > green + 40 and red > blue + 60


def test_the_cases_ask_for_new_looks_in_the_models_words(tmp_path):
    """Two cases, two prompts each, none the own caption; the rendered clip shows its track."""
    real, rendered = job.cases(tmp_path)
    for case in (real, rendered):
        assert len(case.looks) == 2 and case.caption not in {look.prompt for look in case.looks}
        for look in case.looks:
            assert look.shape in scenes.SHAPES and look.colour in scenes.COLOURS
            assert look.background in scenes.BACKGROUNDS
    seen = read_object(read_clip(rendered.clip).frames)
    assert velocity_cosine(seen.track, rendered.track) > 0.98


def test_the_whole_demo_runs_and_resumes(tiny_wan, tmp_path):
    """On a tiny random model: both runs, one page with every clip, a table; the second go makes nothing."""
    model = tiny_wan()
    said = io.StringIO()
    page = job.run_demo(tmp_path / "demo", model=str(model), settings=SHORT, console=Console(stream=said))
    assert page == tmp_path / "demo" / "report.html"
    source = page.read_text("utf-8")
    # Two runs of a reference and two prompts with and without motion, each clip plain and with tracks.
    assert source.count("data:video/mp4;base64,") == 2 * 2 * (1 + 2 * 2)
    for folder in ("apple-bounce", "figure-eight"):
        listed = json.loads((tmp_path / "demo" / folder / "samples" / "samples.json").read_text())
        assert sorted(row["kind"] for row in listed) == ["base", "base", "motion", "motion"]
        scores = json.loads((tmp_path / "demo" / folder / "scores.json").read_text())
        assert {row["name"] for row in scores} == {"velocity_cosine", "right_attributes"}
        assert all(-1 <= row["value"] <= 1 for row in scores)
    text = said.getvalue()
    assert "Results" in text and "Tuning time" in text and str(page) in text

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("samples/*.mp4")}
    job.run_demo(tmp_path / "demo", model=str(model), settings=SHORT, console=Console(stream=io.StringIO()))
    assert made == {path: path.stat().st_mtime_ns for path in made} and len(made) == 8


def test_a_wrong_model_is_one_line_and_exit_code_2(tmp_path, capsys):
    """The demo's command reports the user's mistakes like the other commands."""
    assert main(["--model", str(tmp_path / "no-such-model"), "-o", str(tmp_path / "demo")]) == 2
    assert "fym: " in capsys.readouterr().err
