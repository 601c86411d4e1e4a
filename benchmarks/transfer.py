"""One case of motion transfer on the embedded model: tune on an unseen motion, make new content, score it.

The score of an object is the velocity cosine of its centroid track, that of a camera the cosine of how four
places of the picture move (see fym.embedded.checker); attributes are read by segmentation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fym.config import Config, load_config
from fym.console import QuietConsole
from fym.embedded.checker import Reading, camera_cosine, read_clip, same_ground, true_steps, velocity_cosine
from fym.embedded.scenes import FPS, Scene, caption, ground_caption, render, unseen_scene
from fym.files import write_file
from fym.tune import train
from fym.video import write_clip


@dataclass(frozen=True)
class Target:
    """New content; a camera's has a background only. Its background's name is that of a caption."""

    background: str
    shape: str = ""
    colour: str = ""

    @property
    def prompt(self) -> str:
        if not self.shape:
            return ground_caption(self.background)
        return caption(self.shape, self.colour, self.background)


# Nothing in them is the reference's (a red circle on grey; a checked green background).
OBJECTS = (
    Target("blue", "star", "yellow"),
    Target("green", "square", "white"),
    Target("cyan", "triangle", "purple"),
)
GROUNDS = (Target("rough pink"), Target("forest"), Target("checked yellow"))


def targets(scene: Scene) -> tuple[Target, ...]:
    return OBJECTS if scene.things else GROUNDS


def tuned(motion: str, folder: Path, overrides: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Tune on a clip of the motion in `folder`, resuming what is there; seconds of the stages and where."""
    done = folder / "tuned.json"
    if done.exists():
        return json.loads(done.read_text("utf-8"))
    config = run_config(motion, folder, overrides, assignments)
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / "clip.mp4", render(unseen_scene(motion)), FPS)
    started = time.thread_time()
    result = train(config, folder / "run", console=QuietConsole())
    timings = json.loads((result.run_dir / "timings.json").read_text("utf-8"))
    stages = {
        name: part["seconds"] for name, part in timings.items() if name in ("classify", "spatial", "temporal")
    }
    record = {
        "motion_file": str(result.motion_file.relative_to(folder)),
        "seconds": stages,
        "cpu_seconds": time.thread_time() - started,
        "temporal_heads": int(result.head_map.kind.sum()),
    }
    write_file(done, json.dumps(record, indent=1) + "\n")
    return record


def run_config(motion: str, folder: Path, overrides: dict[str, Any], assignments: Sequence[str]) -> Config:
    """The configuration of a run, the `tiny` preset unless told otherwise."""
    given = {
        "preset": "tiny",
        "clip.path": str(folder / "clip.mp4"),
        "clip.prompt": unseen_scene(motion).prompt,
        **overrides,
    }
    return load_config(None, given, assignments)


def score(clip: Tensor, scene: Scene, target: Target) -> dict[str, Any]:
    """What a clip (F, H, W, 3) has of the reference's motion, of its prompt and of the reference's look."""
    reading = read_clip(clip)
    row: dict[str, Any] = {"cosine": _cosine(reading, scene)}
    seen = {"background": reading.background, "shape": reading.shape, "colour": reading.colour}
    named = {"background": target.background, "shape": target.shape, "colour": target.colour}
    own = {"background": scene.background, "shape": scene.shape, "colour": scene.colour}
    used = [name for name in seen if named[name]]
    row["right"] = {name: _same(seen[name], named[name]) for name in used}
    row["leaked"] = {name: _same(seen[name], own[name]) for name in used if own[name] != named[name]}
    if scene.things:
        row["one_piece"] = float(reading.one_piece.mean())
        row["track"] = reading.track.round(2).tolist()  # NaN where not seen
    else:
        row["camera"] = reading.camera.round(2).tolist()
    row["flicker"] = reading.flicker
    return row


def cosine_with(row: dict[str, Any], scene: Scene) -> float:
    """The cosine of a scored clip with another scene's motion of the same kind: the shuffled control."""
    if scene.things:
        return velocity_cosine(np.array(row["track"], float), scene.track)
    return camera_cosine(np.array(row["camera"]), true_steps(scene.camera, scene.frames))


def _cosine(reading: Reading, scene: Scene) -> float:
    if scene.things:
        return velocity_cosine(reading.track, scene.track)
    return camera_cosine(reading.camera, true_steps(scene.camera, scene.frames))


def _same(seen: str, named: str) -> float:
    return float(same_ground(seen, named))
