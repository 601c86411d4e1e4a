"""End to end: the kernels teach the embedded model what plain PyTorch teaches it, up to rounding.

benchmarks/backends.py is the long form of this, with the scores of the motion.
"""

import json
from functools import partial

import pytest
import torch

import fym_kernels
from fym import tune
from fym.config_file import load_config
from fym.console import QuietConsole
from fym.embedded.scenes import FPS, render, unseen_scene
from fym.video import write_clip
from fym_kernels import extension

STEPS = 4  # of each stage
ULP = torch.finfo(torch.float32).eps


@pytest.fixture
def losses(tmp_path, monkeypatch):
    """losses(backend): of each step of a whole tuning run; nudge=n: every weight is one rounding off, up or
    down as random numbers of seed n say."""
    scene = unseen_scene("spiral")
    write_clip(tmp_path / "clip.mp4", render(scene), FPS)
    settings = {
        "clip.path": str(tmp_path / "clip.mp4"),
        "clip.prompt": scene.prompt,
        "spatial.steps": STEPS,
        "tune.looks": 1,
        "temporal.steps": STEPS,
        "temporal.batch_size": 2,
        "generate.steps": 1,
    }
    load_family = tune.load_family

    def load_nudged(nudge, *arguments, **options):
        family = load_family(*arguments, **options)
        generator = torch.Generator().manual_seed(nudge)
        with torch.no_grad():
            for weight in family.transformer.parameters():
                weight *= 1 + ULP * (2 * torch.randint(2, weight.shape, generator=generator) - 1)
        return family

    def run(backend, *, nudge=0):
        monkeypatch.setattr(tune, "load_family", partial(load_nudged, nudge) if nudge else load_family)
        folder = tmp_path / f"{backend}-{nudge}"
        with fym_kernels.use_backend(backend):
            tune.train(load_config(None, settings), folder, console=QuietConsole())
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)

    return run


@pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built")
def test_the_cpu_kernels_learn_as_the_reference_does_up_to_rounding(losses, monkeypatch):
    """The ruler is the reference itself with weights one rounding off: over the steps of both stages, after
    the choice of heads, the curves are no farther apart than four times the most that this changes.
    Four, because a step rounds more than its weights; measured: 0.5 times with Muon, 1.1 with AdamW."""
    monkeypatch.setattr("fym.report.write_report", lambda run_dir: run_dir / "report.html")
    reference = losses("reference")
    assert len(reference) == 2 * STEPS
    allowed = 4 * max((losses("reference", nudge=n) - reference).norm() for n in (1, 2))
    assert 0 < (losses("cpu") - reference).norm() <= allowed
