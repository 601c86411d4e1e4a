"""The report: one well-formed file that needs nothing else, whole or unfinished, with all text escaped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pages import CHROMIUM, Page, assert_self_contained, browse

from fym.config_file import default_config, to_toml
from fym.errors import UserError
from fym.heads import HeadMap
from fym.report import write_index, write_report
from fym.report.plots import frame_schedule, head_map, save, smooth, to_svg
from fym.report.rundir import read_run
from fym.video import write_clip

FRAMES = 25


def scene(colour: tuple[int, int, int], ground: tuple[int, int, int], path: np.ndarray) -> torch.Tensor:
    """A disc following `path` (F,2) in pixels of a 48 x 48 clip."""
    frames = []
    for x, y in path:
        large = np.full((384, 384, 3), ground, np.uint8)
        cv2.circle(large, (int(x * 8 + 4), int(y * 8 + 4)), 56, colour, -1, cv2.LINE_AA)
        frames.append(cv2.resize(large, (48, 48), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(frames))


def loop(phase: float = 0.0) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, FRAMES) + phase
    return np.stack([23.5 + 13 * np.sin(turn), 23.5 + 10 * np.sin(2 * turn)], axis=1)


def heads() -> HeadMap:
    rng = np.random.default_rng(3)
    spatial = rng.uniform(0.2, 0.8, (6, 6))
    return HeadMap(
        spatial_mass=spatial,
        temporal_mass=spatial * np.exp(rng.normal(0.2, 0.6, (6, 6))),
        flips=(rng.uniform(size=(6, 6)) > 0.9).astype(np.int64),
        rule="mass",
        threshold=1.3,
        topk=0,
        band=1.0,
        seeds=3,
        sigmas=[0.9998],
        model_id="embedded",
        model_hash="0" * 64,
    )


def rows(stage: str, steps: int) -> list[str]:
    rng, made = np.random.default_rng(1), []
    for step in range(steps):
        flow = 0.2 + np.exp(-step / 30) + 0.2 * rng.uniform()
        row = {"stage": stage, "step": step, "loss": flow, "seconds": 0.1, "rss_mib": 700}
        if stage == "temporal":
            motion = 0.3 + 0.5 * np.exp(-step / 60)
            row |= {"loss": flow + motion, "loss_flow": flow, "loss_motion": motion}
        made.append(json.dumps(row))
    return made


def fabricate(
    folder: Path, prompts: tuple[str, ...], caption: str = "a red disc moves in a figure eight"
) -> Path:
    """A finished run directory: the tuned clips follow the reference, the base clips go straight."""
    (folder / "samples").mkdir(parents=True)
    config = default_config()
    config.spatial.steps, config.temporal.steps, config.temporal.picking = 100, 300, "uniform"
    config.clip.path, config.clip.prompt, config.generate.prompts = (
        ["clips/eight.mp4"],
        [caption],
        list(prompts),
    )
    (folder / "config.toml").write_text(to_toml(config))
    heads().save(folder / "heads.json")
    (folder / "train.jsonl").write_text("\n".join(rows("spatial", 100) + rows("temporal", 300)) + "\n")
    costs = {
        "classify": (2.4, 690),
        "cache": (0.6, 700),
        "spatial": (9.8, 720),
        "temporal": (96.1, 910),
        "sample": (31.0, 760),
    }
    timings = {name: {"seconds": s, "peak_rss_mib": mib} for name, (s, mib) in costs.items()}
    timings["spatial"]["seconds_per_step"], timings["temporal"]["seconds_per_step"] = 0.098, 0.32
    (folder / "timings.json").write_text(json.dumps(timings))
    write_clip(folder / "reference.mp4", scene((220, 40, 40), (240, 235, 220), loop()), 12)
    looks = [((240, 200, 40), (20, 90, 50)), ((60, 80, 220), (250, 190, 200))]
    listed, scores = [], []
    line = np.stack([np.linspace(12, 30, FRAMES), np.full(FRAMES, 20.0)], axis=1)
    for number, prompt in enumerate(prompts):
        for kind, path in (("motion", loop(0.15)), ("base", line)):
            name = f"{kind}-{number}.mp4"
            write_clip(folder / "samples" / name, scene(*looks[number % 2], path), 12)
            listed.append({"file": name, "prompt": prompt, "seed": 0, "kind": kind, "step": 300})
            value = 0.91 if kind == "motion" else 0.02
            scores.append({"file": name, "name": "velocity_cosine", "value": value, "definition": "a < b"})
    (folder / "samples" / "samples.json").write_text(json.dumps(listed))
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


PROMPTS = ("a yellow circle on a green background", "a blue circle on a pink background")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("runs") / "figure-eight", PROMPTS)


def test_a_finished_run_is_one_well_formed_offline_file(run_dir):
    """All clips twice (plain, with tracks) as mp4 data, every section filled, nothing from outside."""
    path = write_report(run_dir)
    page = Page(path)
    assert path == run_dir / "report.html" and (run_dir / "heads.png").stat().st_size > 5000
    assert_self_contained(page)
    videos = [address for address in page.addresses if address.startswith("data:video")]
    assert len(videos) == 2 * (1 + 2 * len(PROMPTS)) and page.tags.count("svg") == 4
    for words in (*PROMPTS, "figure eight", "not there yet"):
        assert (words in page.text) == (words != "not there yet")
    assert "velocity cosine 0.91" in page.text and "velocity_cosine: a < b" in page.text
    assert "fym train --config" in page.text
    assert 'muted autoplay loop playsinline width="48" height="48" data-fps="12" class="tiny"' in page.source


def test_the_scores_tell_the_tuned_clips_from_the_controls(run_dir):
    """Every clip and the control rows: the reference against itself 1, frozen 0, tuned above base."""
    source = write_report(run_dir).read_text("utf-8")
    cells = re.findall(r"<tr class=\"(?:control)?\"><td>(.*?)</td><td class=\"number\">(.*?)</td>", source)
    table = {
        label.split(":")[0] + label.split(":")[1][:8]: value.replace("−", "-")
        for label, value in cells
        if ":" in label
    }
    assert table["control the ref"] == "1.00" and table["control frozen "] == "0.00"
    assert float(table["control referen"]) < 0.2
    assert float(table["tuned “a yell"]) > 0.4 > float(table["base model, no adapters “a yell"])


def test_text_of_the_user_is_escaped(tmp_path):
    """Markup in captions and prompts is shown, not obeyed."""
    evil = '</title><script>alert("x")</script><img src=http://evil.example/x onerror=1> & "quoted"'
    page = Page(write_report(fabricate(tmp_path / "a & <b>", (evil,), caption=evil)))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert page.text.count('alert("x")') >= 3
    assert "<b>" not in page.source.split("<title>")[1].split("</title>")[0]


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (["samples"], "Generated clips: not there yet"),
        (["heads.json"], "The head map: not there yet"),
        (["timings.json"], "Time and memory: not there yet"),
        (["train.jsonl"], "The loss curves: not there yet"),
        (["config.toml"], "config.toml: not there yet"),
        (["reference.mp4"], "Motion scores: not there yet"),
        (
            [
                "samples",
                "heads.json",
                "timings.json",
                "train.jsonl",
                "config.toml",
                "reference.mp4",
                "scores.json",
            ],
            "The head map: not there yet",
        ),
    ],
)
def test_an_unfinished_run_says_what_is_missing(run_dir, tmp_path, absent, said):
    """Any piece may be absent: the page is still written, well-formed, and names it."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for name in absent:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    page = Page(write_report(folder))
    assert said in page.text
    assert_self_contained(page)


def test_a_run_stopped_in_a_stage_shows_its_progress(run_dir, tmp_path):
    """Half the temporal steps and a half-written last line: the steps so far are told and drawn."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    lines = rows("spatial", 100) + rows("temporal", 120) + ['{"stage": "tempo']
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert "120 of 300 steps of the temporal stage so far" in re.sub(
        r"(\d)steps", r"\1 steps", Page(write_report(folder)).text
    )
    (folder / "train.jsonl").write_text("\n".join(rows("spatial", 100)))
    assert "The temporal stage: not there yet" in Page(write_report(folder)).text


def test_broken_files_are_named_and_left_out(run_dir, tmp_path):
    """A damaged clip or JSON file costs its own part of the page only."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (folder / "samples" / "motion-0.mp4").write_bytes(b"no video at all")
    (folder / "heads.json").write_text("{")
    text = Page(write_report(folder)).text
    assert "motion-0.mp4 cannot be shown" in text and "heads.json cannot be read" in text
    assert "base model, no adapters" in text


def test_repeated_steps_count_once_and_the_newest_sample_is_shown(run_dir, tmp_path):
    """After a resume train.jsonl repeats steps: the last row of a step wins; an older sample gives way."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    row = {"stage": "spatial", "step": 3, "loss": 9.0}
    with (folder / "train.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    listed = json.loads((folder / "samples" / "samples.json").read_text())
    listed.append(listed[0] | {"step": 100, "file": "missing.mp4"})
    (folder / "samples" / "samples.json").write_text(json.dumps(listed))
    run = read_run(folder)
    assert run.steps_done("spatial") == 100 and run.log[3]["loss"] == 9.0
    assert "missing.mp4" not in Page(write_report(folder)).text


def test_an_index_holds_several_runs(run_dir, tmp_path):
    """Both runs in one file, linked from its head."""
    second = fabricate(tmp_path / "second", PROMPTS[:1])
    page = Page(write_index([run_dir, second], tmp_path / "all.html", title="Two <clips>"))
    assert_self_contained(page)
    assert [a for a in page.addresses if a.startswith("#run-")] == ["#run-figure-eight", "#run-second"]
    assert 'id="run-second"' in page.source and "Two <clips>" in page.text


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path):
    """One message that says what to give."""
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path / "nowhere")


def test_smoothing_starts_at_the_first_value_and_skips_nan():
    """The running mean is not pulled towards 0 at its start and passes over steps without a value."""
    assert smooth([5.0, 5.0, float("nan"), 5.0], 4) == pytest.approx([5.0] * 4)
    assert smooth([1.0, 2.0], 1) == [1.0, 2.0]


def test_pictures_follow_the_pages_ink_and_escape_their_description(tmp_path):
    """The SVG has no ink of its own, and a PNG of a large model's map is written too."""
    svg = to_svg(frame_schedule(49, list(range(0, 49, 4)), [0, 4, 8, 12]), 'a "b" <c>')
    assert "currentColor" in svg and 'aria-label="a &quot;b&quot; &lt;c>"' in svg
    masses = np.random.default_rng(0).uniform(0.1, 1, (2, 40, 40))
    large = replace(
        heads(), spatial_mass=masses[0], temporal_mass=masses[1], flips=np.zeros((40, 40), np.int64)
    )
    assert save(head_map(large), tmp_path / "h.png").stat().st_size > 5000


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_a_browser_renders_the_page(run_dir, tmp_path):
    """Headless Chromium loads the page, runs its script and paints more than a blank sheet."""
    picture = tmp_path / "page.png"
    browse(write_report(run_dir), tmp_path, "--window-size=1280,2400", f"--screenshot={picture}")
    image = cv2.imread(str(picture))
    assert image is not None and image.shape[1] == 1280 and image.std() > 10
