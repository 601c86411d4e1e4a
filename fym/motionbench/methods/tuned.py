"""Methods that are settings of `fym train`: fym, its ablations, and tuning-based baselines.

Baselines as their papers have them, with AdamW and the preset's steps (with `tiny` those of PLAIN_STEPS,
which take nearly twice the time of fym's): `lora` tunes one adapter on all heads and all frames for the steps
of both stages; `two-stage` first tunes the look on single frames, then the motion on all frames, both on all
heads; `motiondirector` is that with MotionDirector's appearance-debiased loss (arXiv 2310.08465, eq. 6)
added in the second stage: a spatial path on single frames, a temporal path that sees all of them and is used
alone to make clips. MotionDirector trains both paths in each step; here they follow each other, and since a
video transformer has no temporal layers, the temporal path has all heads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fym.config import OPTIONS, Config, GenerateConfig
from fym.config_file import load_config
from fym.console import QuietConsole
from fym.files import write_file
from fym.generate import one_clip
from fym.motion_file import load_motion_file
from fym.motionbench.case import Case
from fym.motionbench.methods.base import Method, Model, Tuned
from fym.options import get
from fym.positions import COMPRESSION
from fym.tune import train
from fym.video import write_clip

ALL = "all"  # as a number of frames: those of the clip, as far as the model goes
ALL_FRAMES = {"temporal.sparse_frames": ALL, "temporal.picking": "uniform", "temporal.latents": "encode"}
NAIVE = {
    **ALL_FRAMES,
    "heads.grouping": "all",
    "temporal.positions": "none",
    "temporal.motion_weight": 0.0,
    "temporal.lowest_noise": 0.0,
    "temporal.camera_lowest_noise": -1.0,
    "temporal.camera_guidance": -1.0,
    "temporal.person_lowest_noise": -1.0,
    "temporal.person_guidance": -1.0,
    "tune.optimizer": "adamw",
    "tune.looks": 1,
    "tune.scenes": [],
}
PLAIN_STEPS = {"tiny": (100, 500)}  # of the stages of the baselines, where they are not the preset's
BOTH = "both"  # as a number of steps: those of both stages

# Name, what it is, and its settings over the preset.
SETTINGS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("fym", "the preset as it is", {}),
    (
        "lora",
        "one adapter, all heads, all frames",
        {**NAIVE, "spatial.steps": 0, "temporal.steps": BOTH},
    ),
    ("two-stage", "look, then motion, all heads in both, all frames", NAIVE),
    ("motiondirector", "two-stage with the appearance-debiased loss", {**NAIVE, "temporal.debias": True}),
    ("no-decoupling", "fym with all heads in both stages", {"heads.grouping": "all"}),
    ("no-adaptive-rope", "fym with positions 0, 1, 2, ...", {"temporal.positions": "none"}),
    ("no-sparse-sampling", "fym on all frames", ALL_FRAMES),
    ("no-motion-loss", "fym without the motion loss", {"temporal.motion_weight": 0.0}),
    ("no-spatial-stage", "fym without the spatial stage", {"spatial.steps": 0}),
    ("random-heads", "fym on as many heads drawn at random", {"heads.grouping": "random"}),
    ("one-look", "fym on the clip in its own look and scene alone", {"tune.looks": 1, "tune.scenes": []}),
    ("adamw", "fym with AdamW instead of Muon", {"tune.optimizer": "adamw"}),
    (
        "every-noise-level",
        "fym tuned and acting at every noise level",
        dict.fromkeys(
            ("temporal.lowest_noise", "temporal.camera_lowest_noise", "temporal.person_lowest_noise"), 0.0
        ),
    ),
    ("sparse-to-the-end", "fym without the last steps on all frames", {"temporal.whole_share": 0.0}),
)
STAGES = ("cache", "classify", "spatial", "temporal")


@dataclass(frozen=True, eq=False)
class TunedMethod(Method):
    """`overrides` and the command line's "a.b=c" texts `assignments`, over the preset of the model."""

    name: str
    help: str
    overrides: Mapping[str, Any]
    assignments: Sequence[str] = ()

    def with_settings(self, given: Sequence[str]) -> Method:
        return replace(self, name=f"{self.name} {','.join(given)}", assignments=given)

    def settings(self, model: Model, case: Case) -> str:
        config = self.config(model, case)
        # What stands at its default is left out: results stay good when an option is added.
        plain = Config()
        skipped = ("preset", "output", "model.path", "clip.path", "clip.prompt")
        values = {name: get(config, name) for name in OPTIONS if name not in skipped}
        changed = {name: value for name, value in values.items() if value != get(plain, name)}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in changed.items())

    def config(self, model: Model, case: Case, clip: Path = Path("clip")) -> Config:
        """Of `fym train`. Raises UserError for settings that are none."""
        given = {
            **self.overrides,
            "model.path": model.path,
            "clip.path": str(clip),
            "clip.prompt": case.prompt,
        }
        if NAIVE.items() <= given.items():
            preset = load_config(None, {"model.path": model.path}, self.assignments)
            steps = PLAIN_STEPS.get(preset.preset, (preset.spatial.steps, preset.temporal.steps))
            given = dict(zip(("spatial.steps", "temporal.steps"), steps, strict=True)) | given
            if given["temporal.steps"] == BOTH:
                given["temporal.steps"] = sum(steps)
        if given.get("temporal.sparse_frames") == ALL:
            frames = min(len(model.reference(case)[0]), model.family.default_frames)
            given["temporal.sparse_frames"] = (frames - 1) // COMPRESSION * COMPRESSION + 1
        return load_config(None, given, self.assignments)

    def tune(self, model: Model, case: Case, folder: Path) -> Tuned:
        clip, done, run_dir = folder / "reference", folder / "tuned.json", folder / "run"
        config = self.config(model, case, clip)
        if not done.exists():
            if not clip.exists():
                write_clip(clip, *model.reference(case))  # as pictures: coding it as a film is not exact
            # The sample at the end of a tuning is not needed: one step of it.
            sampled = replace(config, generate=replace(config.generate, prompts=[], seeds=[0], steps=1))
            train(sampled, run_dir, console=QuietConsole(), family=model.family)
            costs = json.loads((run_dir / "timings.json").read_text("utf-8"))
            write_file(done, json.dumps({name: costs[name] for name in STAGES if name in costs}) + "\n")
        for part in (clip, run_dir / "checkpoints", run_dir / "cache"):
            shutil.rmtree(part, ignore_errors=True)
        motion = load_motion_file(run_dir / "motion.safetensors")
        return Tuned(
            lambda prompt, seed: one_clip(model.family, config.generate, prompt, seed, motion=motion),
            json.loads(done.read_text("utf-8")),
        )


@dataclass(frozen=True, eq=False)
class Base(Method):
    """The model as it is."""

    name: str = "base"
    help: str = "the model without tuning"

    def settings(self, model: Model, case: Case) -> str:
        return "base\n"

    def tune(self, model: Model, case: Case, folder: Path) -> Tuned:
        return Tuned(lambda prompt, seed: one_clip(model.family, GenerateConfig(), prompt, seed, motion=None))
