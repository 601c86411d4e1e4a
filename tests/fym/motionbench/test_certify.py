"""The certificate: what it demands, that our metrics earn it, and that the documentation shows it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fym.cli import main
from fym.motionbench.certify import Row, examine, judge
from fym.motionbench.defects import DEFECTS, WRONG_MOTIONS, make_case
from fym.motionbench.metrics import METRICS
from fym.motionbench.table import BLIND, SEEN, defect_table, definitions, error_table
from fym.video import write_clip

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
TRIED = ("reversed zoom", "5x speed", "missing object", "wrong attribute")
OURS = (
    "direction",
    "speed_ratio",
    "trajectory_error/frechet",
    "trajectory_error/dtw",
    "camera_error",
    "object_residual",
    "motion_fidelity/two_way",
    "motion_fidelity/local",
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return examine(defects=TRIED, seeds=[0])


def test_our_scores_together_claim_every_wrong_motion():
    """Each of the seven defects of motion is claimed by a score of direction, speed, paths or camera."""
    claimed = {d for name in OURS[:5] for d in METRICS[name].claims}
    assert claimed == set(WRONG_MOTIONS)
    assert all(d in DEFECTS for metric in METRICS.values() for d in metric.claims)


def test_our_scores_see_what_they_claim(rows):
    """On one seed: claims seen, no faithful clip called wrong, perfect against itself."""
    for verdict in judge(rows):
        if verdict.metric.name in OURS:
            assert verdict.passed, (verdict.metric.name, verdict.reasons)


def test_the_published_fidelity_is_not_certified(rows):
    """It is imperfect against itself and blind to a reversed zoom and a missing object."""
    legacy = next(v for v in judge(rows) if v.metric.name == "motion_fidelity/legacy")
    assert not legacy.passed and not legacy.itself_perfect
    assert legacy.seen["reversed zoom"] == 0 and "missing object" in legacy.missed


def test_tracked_values_are_near_the_true_ones(rows):
    """The scores from tracks differ from those of true tracks by less than the scores' own tolerance."""
    for verdict in judge(rows):
        if verdict.metric.name in OURS:
            assert verdict.errors and np.median(verdict.errors) < verdict.metric.tolerance / 2


def test_what_fails_a_certificate():
    """A missed claim in one seed, a false alarm, an imperfect self, each alone and with its sentence."""
    metric = METRICS["direction"]
    good = Row(metric, "reversed pan", 0, -1.0, 0.95, 1.0, -1.0, 1.0)
    assert judge([good])[0].passed
    for bad, reason in (
        (replace(good, seed=1, faulty=0.9), "does not see: reversed pan"),
        (replace(good, seed=1, faulty=math.nan), "does not see: reversed pan"),
        (replace(good, seed=1, faithful=0.5), "50% of the faithful clips"),
        (replace(good, seed=1, itself=0.99), "itself"),
    ):
        verdict = judge([good, bad])[0]
        assert not verdict.passed and any(reason in text for text in verdict.reasons)


def test_a_metric_that_claims_nothing_is_not_certified():
    """Seeing no defect is no merit, however few are claimed."""
    metric = METRICS["temporal_consistency/embedding"]
    verdict = judge([Row(metric, "flicker", 0, 0.9, 0.99, 0.99, 0.9, 0.99)])[0]
    assert verdict.reasons == ["it claims to see no defect"] and not verdict.passed


def test_cases_are_seeded_and_differ():
    """The same seed gives the same pixels, another seed others; frames before the defect look alike."""
    first, again, other = (make_case("frozen clip", seed) for seed in (0, 0, 1))
    assert torch.equal(first.faulty.frames, again.faulty.frames)
    assert not torch.equal(first.reference.frames, other.reference.frames)
    assert torch.equal(first.faithful.frames[0], first.faulty.frames[0])
    assert torch.equal(first.faulty.frames, first.faulty.frames[:1].expand_as(first.faulty.frames))


def test_the_documentation_agrees_with_the_code(rows):
    """Definitions are the code's own; yes and – of the defect table hold on the seed tried here."""
    text = DOCUMENT.read_text()
    assert definitions(tuple(METRICS.values())) in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head = next(cells for cells in lines if "reversed zoom" in cells)
    shown = {cells[0].strip("`"): cells for cells in lines if len(cells) == len(head)}
    for row in rows:
        cell = shown[row.metric.name][head.index(row.defect)].strip("* ")
        assert not (cell == SEEN and not row.seen) and not (cell == BLIND and row.seen), (row.defect, cell)


@pytest.mark.slow
def test_the_documented_tables_are_the_codes_own():
    """All defects, all seeds: both tables, character by character."""
    verdicts = judge(examine())
    text = DOCUMENT.read_text()
    assert defect_table(verdicts) in text
    assert error_table(verdicts) in text


def test_certify_exits_with_the_verdict(capsys, monkeypatch):
    """0 for a metric that earns it, 1 with the reasons for one that does not, 2 for one there is not."""
    monkeypatch.setattr(examine, "__kwdefaults__", {**examine.__kwdefaults__, "defects": ("reversed pan",)})
    assert main(["motionbench", "certify", "direction", "--seeds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["direction"]
    assert told["certified"] and told["seen"] == {"reversed pan": 1.0}
    values = told["values"]["reversed pan"]
    assert values["faulty"] < -0.9 and values["faithful"] > 0.9
    assert main(["motionbench", "certify", "motion_fidelity/legacy", "--seeds", "1"]) == 1
    out, err = capsys.readouterr()
    assert "reversed pan" in out and "against itself" in err
    assert main(["motionbench", "certify", "beauty"]) == 2
    assert "known are" in capsys.readouterr().err


def test_score_prints_every_metric(capsys, tmp_path):
    """The JSON holds value, backend, version and definition of each metric; what is not measured is null."""
    case = make_case("reversed pan", 0)
    for name in ("reference", "faulty"):
        write_clip(tmp_path / f"{name}.mp4", getattr(case, name).frames, 8)
    paths = [str(tmp_path / f"{name}.mp4") for name in ("reference", "faulty")]
    assert main(["motionbench", "score", *paths, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert list(scores) == list(METRICS)
    assert scores["direction"]["value"] < -0.9 and scores["direction"]["backend"].startswith("OpenCV")
    assert scores["camera_error"]["value"] == pytest.approx(2, abs=0.1)
    assert scores["text_alignment"]["value"] is None and "CLIP" in scores["text_alignment"]["note"]
    assert main(["motionbench", "score", *paths, "--tracker", "kalman"]) == 2
    assert main(["motionbench", "score", paths[0], str(tmp_path / "none.mp4")]) == 2
    capsys.readouterr()
    assert main(["motionbench", "score", *paths]) == 0
    out = capsys.readouterr().out
    assert "direction v2" in out and "not measured" in out and "Lucas-Kanade" in out
