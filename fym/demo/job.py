"""What `make demo` does: the whole tuning on two clips, and two new prompts each with and without the motion.

One clip is real (packaged in `clips/`, its object's track measured), one rendered (its track known). Running
it again goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fym import tune
from fym.config import Config
from fym.config_file import load_config
from fym.console import Console, duration
from fym.embedded import scenes
from fym.embedded.checker import read_clip as read_object
from fym.embedded.checker import velocity_cosine
from fym.families import Family, load_family
from fym.files import write_file
from fym.generate import generate
from fym.report import write_index, write_report
from fym.runlog import Timings
from fym.video import read_clip, write_clip

CLIPS = Path(__file__).parent / "clips"
DEFINITIONS = {
    "velocity_cosine": "cosine between the object’s velocity from frame to frame and the true one, −1 to 1, "
    "1 is best; a frame without an object counts 0.",
    "right_attributes": "share of shape, colour and background that are as asked, found by segmentation.",
}
TUNING = ("classify", "cache", "spatial", "temporal")


@dataclass(frozen=True)
class Look:
    """What a prompt asks for, in the words of the embedded model's captions."""

    shape: str
    colour: str
    background: str

    @property
    def prompt(self) -> str:
        return scenes.caption(self.shape, self.colour, self.background)


@dataclass(frozen=True)
class Case:
    """One reference clip: its file, caption, the object's true centre in each frame, and the new looks."""

    name: str
    clip: Path
    caption: str
    track: npt.NDArray[np.float64]  # (F,2) pixels of the clip
    looks: tuple[Look, ...]
    rendered: bool  # on a plain ground, so that the checker can read the reference too


def cases(folder: Path) -> list[Case]:
    """The demo's two cases; the rendered clip is written into `folder`."""
    [entry] = json.loads((CLIPS / "manifest.json").read_text("utf-8"))
    real = Case(
        "apple-bounce",
        CLIPS / entry["file"],
        entry["prompt"],
        np.array(entry["track"]),
        (Look("star", "yellow", "blue"), Look("square", "purple", "white")),
        rendered=False,
    )
    scene = scenes.unseen_scene("figure eight", shape="circle", colour="red", background="grey")
    clip = folder / "figure-eight.mp4"
    if not clip.exists():
        write_clip(clip, scenes.render(scene), scenes.FPS)
    looks = (Look("square", "yellow", "blue"), Look("star", "white", "green"))
    return [real, Case("figure-eight", clip, scene.prompt, scene.track, looks, rendered=True)]


def run_demo(
    output: Path,
    *,
    model: str = "embedded",
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Run all of it into `output` and return the page, report.html.

    settings: option names and values for every run, over the preset's. Raises UserError as `tune.train` does.
    """
    started = time.monotonic()
    console = console or Console()
    family = load_family(model)
    folders, rows = [], []
    for case in cases(output / "clips"):
        run_dir = output / case.name
        config = _config(case, family, {"model.path": model, **(settings or {})})
        console.info(f"\n{case.name}: {case.clip}")
        tune.train(config, run_dir, console=console)
        _make_base_clips(config, family, run_dir)
        rows += _write_scores(case, run_dir)
        write_report(run_dir)
        folders.append(run_dir)
    page = write_index(folders, output / "report.html", title="Two motions, given to new things")
    _print_results(console, rows, folders)
    console.info(f"\ndone in {duration(time.monotonic() - started)}; the page to look at: {page}")
    return page


def _config(case: Case, family: Family, settings: Mapping[str, Any]) -> Config:
    frames = len(case.track)
    given = {
        "clip.path": str(case.clip),
        "clip.prompt": case.caption,
        "generate.prompts": [look.prompt for look in case.looks],
        # As long as the reference, so that the two can be compared frame by frame.
        "generate.frames": min(frames, family.default_frames) if family.default_frames else frames,
        "preset": "tiny",
    }
    return load_config(None, given | dict(settings))


def _make_base_clips(config: Config, family: Family, run_dir: Path) -> None:
    """The control: the same prompts and seeds, without adapters, listed beside the run's own samples."""
    index = run_dir / "samples" / "samples.json"
    listed = json.loads(index.read_text("utf-8"))
    wanted = [
        (i, prompt, seed)
        for i, prompt in enumerate(config.generate.prompts)
        for seed in config.generate.seeds
    ]
    with Timings(run_dir / "timings.json", family.device).measure("base clips"):
        for number, prompt, seed in wanted:
            name = f"base-{number}-s{seed}.mp4"
            if any(row["file"] == name for row in listed) and (index.parent / name).exists():
                continue
            [frames] = generate(
                family,
                [prompt],
                motion=None,
                seeds=[seed],
                num_frames=config.generate.frames,
                height=config.generate.height,
                width=config.generate.width,
                steps=config.generate.steps,
            )
            write_clip(index.parent / name, frames, family.default_fps)
            row = {"file": name, "prompt": prompt, "seed": seed, "kind": "base", "step": 0}
            listed = [old for old in listed if old["file"] != name] + [row]
            write_file(index, json.dumps(listed, indent=1) + "\n")


def _write_scores(case: Case, run_dir: Path) -> list[dict[str, Any]]:
    """Measure every sample against the truth; write scores.json, return the rows of the table."""
    looks = {look.prompt: look for look in case.looks}
    scores, rows = [], []
    for sample in json.loads((run_dir / "samples" / "samples.json").read_text("utf-8")):
        seen = read_object(read_clip(run_dir / "samples" / sample["file"]).frames)
        look = looks[sample["prompt"]]
        right = [seen.shape == look.shape, seen.colour == look.colour, seen.background == look.background]
        frames = min(len(seen.track), len(case.track))
        values = {
            "velocity_cosine": velocity_cosine(seen.track[:frames], case.track[:frames]),
            "right_attributes": sum(right) / len(right),
        }
        scores += [_score(sample["file"], name, value) for name, value in values.items()]
        rows.append({"case": case.name, **sample, **values})
    if case.rendered:  # a control row: what the measurement gives for the truth itself
        track = read_object(read_clip(run_dir / "reference.mp4").frames).track
        value = velocity_cosine(track, case.track[: len(track)])
        scores.append(_score("reference.mp4", "velocity_cosine", value))
    write_file(run_dir / "scores.json", json.dumps(scores, indent=1) + "\n")
    return rows


def _score(file: str, name: str, value: float) -> dict[str, Any]:
    return {"file": file, "name": name, "value": value, "definition": DEFINITIONS[name]}


def _print_results(console: Console, rows: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> None:
    table: list[Sequence[str]] = [
        ("clip", "prompt", "velocity cosine", "base model", "attributes", "base model")
    ]
    for row in rows:
        if row["kind"] == "motion":
            same = ("case", "prompt", "seed")
            [base] = [r for r in rows if r["kind"] == "base" and all(r[key] == row[key] for key in same)]
            figures = [r[name] for name in ("velocity_cosine", "right_attributes") for r in (row, base)]
            table.append((row["case"], row["prompt"], *(f"{figure:.2f}" for figure in figures)))
    console.table("Results", table)
    costs: list[Sequence[str]] = [("seconds", *TUNING, "temporal, per step")]
    for folder in folders:
        timings = json.loads((folder / "timings.json").read_text("utf-8"))
        seconds = [f"{timings.get(name, {}).get('seconds', 0.0):.1f}" for name in TUNING]
        costs.append(
            (folder.name, *seconds, f"{timings.get('temporal', {}).get('seconds_per_step', 0.0):.3f}")
        )
    console.table("Tuning time", costs)
