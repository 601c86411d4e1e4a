"""Fixtures of the tests of fym."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recordings import numbered, write_video
from tuning import HEADS, STEPS, run

from fym import tune
from fym.config_file import load_config
from fym.heads import HeadMap


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", numbered(30))


@pytest.fixture
def configure(tiny_wan, clip_path):
    def make(**changes):
        settings = {
            "model.path": str(tiny_wan()),
            "clip.path": str(clip_path),
            "clip.prompt": "a square",
            "temporal.sparse_frames": 9,
            "tune.checkpoint_every": 4,
            "generate.steps": 1,
        }
        for stage in ("spatial", "temporal"):
            settings |= {f"{stage}.steps": STEPS, f"{stage}.rank": 2, f"{stage}.learning_rate": 1e-2}
        return load_config(None, settings | {k.replace("__", "."): v for k, v in changes.items()})

    return make


@pytest.fixture
def short_end(monkeypatch):
    """No report (it has its own tests)."""
    monkeypatch.setattr("fym.report.write_report", lambda run_dir: run_dir / "report.html")


@pytest.fixture
def planted(monkeypatch):
    """planted(kinds): classification comes out so."""

    def plant(kinds=HEADS):
        def classify(family, latents, text, config, *, seed, progress=None):
            kind = np.array(kinds, float)
            return HeadMap(
                np.ones(kind.shape),
                1 + kind,
                np.zeros(kind.shape, np.int64),
                "mass",
                1.3,
                0,
                1.0,
                1,
                [0.9998],
                family.model_id,
                family.model_hash,
            )

        monkeypatch.setattr(tune, "classify", classify)

    plant()
    return plant


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folder of the uninterrupted run, made by the first test that needs it."""
    return tmp_path_factory.mktemp("straight") / "run"


@pytest.fixture
def uninterrupted(straight, configure, planted):
    if not straight.exists():
        run(configure(), straight)
    return straight
