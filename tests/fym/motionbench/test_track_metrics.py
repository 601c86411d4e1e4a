"""Metrics of tracks: exact values for exactly known motion, and sense for lost points and odd clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_motion import halves, pan, tracks, zoom

from fym.embedded.scenes import SHAPES, Ground, Scene, Thing, render
from fym.motionbench.metrics import METRICS
from fym.motionbench.metrics.fidelity_local import local
from fym.motionbench.metrics.fidelity_two_way import two_way
from fym.motionbench.metrics.trajectory import dtw, frechet
from fym.motionbench.pair import Pair
from fym.tracks import direction, speed_ratio

MOTIONS = {"pan": pan(1.5, -0.5), "zoom": zoom(0.02), "halves": halves((2, 0), (-2, 0))}
RIGHT, LEFT, STILL, FAST = (tracks(pan(dx)) for dx in (1.0, -1.0, 0.0, 5.0))


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_against_itself_is_perfect(motion):
    """Every score of tracks takes its best value, to rounding."""
    clip = tracks(MOTIONS[motion], starts=(0, 4, 8))
    assert two_way(clip, clip) == pytest.approx(1, abs=1e-6)
    assert local(clip, clip) == pytest.approx(1, abs=1e-6)
    assert direction(clip, clip) == pytest.approx(1, abs=1e-6)
    assert speed_ratio(clip, clip) == 1
    assert frechet(clip, clip) == dtw(clip, clip) == 0


@pytest.mark.parametrize(
    ("score", "reversed_", "frozen", "fast"),
    [
        (two_way, -1, 0, 1),
        (local, -1, 0, 1),
        (direction, -1, 0, 1),
        (speed_ratio, 1, 0, 5),
        (frechet, 2, 1, 4),
    ],
)
def test_known_values_of_a_pan(score, reversed_, frozen, fast):
    """A pan against its reverse, against no motion, and against five times its speed."""
    assert score(RIGHT, LEFT) == pytest.approx(reversed_, abs=1e-6)
    assert score(RIGHT, STILL) == pytest.approx(frozen, abs=1e-6)
    assert score(RIGHT, FAST) == pytest.approx(fast, abs=1e-6)


def test_known_values_of_dtw():
    """Opposite straight paths align step by step: twice the distance of a frozen clip, which is 1."""
    assert dtw(RIGHT, LEFT) == pytest.approx(2)
    assert dtw(RIGHT, STILL) == pytest.approx(1)
    ours, theirs = np.arange(13.0), 5 * np.arange(13.0)
    best = np.full((13, 13), np.inf)
    for s in range(13):  # the textbook recursion
        for t in range(13):
            before = [best[i, j] for i, j in ((s - 1, t), (s, t - 1), (s - 1, t - 1)) if i >= 0 and j >= 0]
            best[s, t] = abs(ours[s] - theirs[t]) + (min(before) if before else 0)
    assert dtw(RIGHT, FAST) == pytest.approx(best[-1, -1] / ours.sum())


def test_place_matters_to_direction_and_paths_but_not_to_best_match():
    """A reversed zoom has every motion of the zoom somewhere: only the scores of same start points see it."""
    grow, shrink = tracks(zoom(0.03)), tracks(zoom(-0.03))
    assert two_way(grow, shrink) == pytest.approx(1, abs=1e-6)
    assert local(grow, shrink) == pytest.approx(-1, abs=1e-6)  # at this spacing nothing else is near
    assert direction(grow, shrink) == pytest.approx(-1, abs=1e-6)
    assert frechet(grow, shrink) == pytest.approx(2, rel=1e-5)


def test_a_one_sided_match_is_seen_from_the_other_side():
    """All that moves in the clip moves as something in the reference, but half of that is missing."""
    both, one = tracks(halves((2, 0), (-2, 0))), tracks(pan(2, 0))
    assert two_way(both, one) == pytest.approx((0 + 1) / 2, abs=1e-6)  # one half matched at 1, one at -1
    assert two_way(one, both) == pytest.approx((1 + 0) / 2, abs=1e-6)
    assert direction(both, one) == pytest.approx(0, abs=1e-6)
    assert frechet(both, one) == pytest.approx(1, rel=1e-5)  # half of the paths right, half at 2


@pytest.mark.parametrize("score", [two_way, local, direction, speed_ratio, frechet, dtw])
def test_without_motion_in_the_reference_there_is_no_score(score):
    """nan, whatever the other clip does."""
    assert np.isnan(score(STILL, STILL))
    assert np.isnan(score(STILL, RIGHT))


@pytest.mark.parametrize("score", [direction, frechet, dtw])
def test_a_clip_whose_points_are_lost_has_no_score(score):
    """Nothing of the reference's motion can be compared: nan, not a guess from the few points left."""
    visible = RIGHT.visible.copy()
    visible[0 if score is direction else 1 :, 1:] = False
    assert np.isnan(score(RIGHT, replace(LEFT, visible=visible)))


def test_velocities_of_the_few_points_left_are_compared():
    """Noise leaves none, so what is left of a clip that flickers was followed."""
    visible = LEFT.visible.copy()
    visible[1:, 1:] = False
    assert direction(RIGHT, replace(LEFT, visible=visible)) == pytest.approx(-1, abs=1e-6)


def test_lost_points_are_compared_while_they_are_seen():
    """Points lost halfway do not change the exact values; where they were last seen is no path."""
    visible = RIGHT.visible.copy()
    visible[::2, 7:] = False
    for path, value in ((RIGHT, 0), (LEFT, 2), (STILL, 1)):
        assert frechet(RIGHT, replace(path, visible=visible)) == pytest.approx(value, abs=1e-6)
        assert dtw(RIGHT, replace(path, visible=visible)) == pytest.approx(value, abs=1e-6)
    assert two_way(RIGHT, replace(RIGHT, visible=visible)) == pytest.approx(1, abs=1e-6)


def test_jitter_below_the_dead_zone_is_no_motion():
    """A still clip with tracker jitter scores as a frozen one."""
    noise = np.random.default_rng(0).normal(scale=0.02, size=STILL.points.shape).astype(np.float32)
    jitter = replace(STILL, points=STILL.points + noise)
    assert two_way(RIGHT, jitter) == 0 and direction(RIGHT, jitter) == 0 and speed_ratio(RIGHT, jitter) == 0
    assert frechet(RIGHT, jitter) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("score", [local, direction, frechet, dtw])
def test_different_grids_cannot_be_compared(score):
    """Tracks without the same start points raise ValueError."""
    with pytest.raises(ValueError, match="different grids"):
        score(RIGHT, tracks(pan(1), grid=5))


def test_a_match_must_be_near():
    """Neighbours within a tenth of the diagonal may stand in for each other, others may not."""
    fine = {"grid": 20}  # 5 pixels apart; a tenth of the diagonal is 14 pixels
    left, shifted, far = (tracks(halves((2, 0), (0, 0), middle), **fine) for middle in (45, 55, 90))
    assert local(left, shifted) == pytest.approx(1, abs=1e-6)
    assert local(left, far) < 0.85 < two_way(left, far)


def test_another_outline_is_forgiven_by_local_matches():
    """The same motion by every other shape: direction may fall far, local fidelity does not."""
    a = np.linspace(0.5, 5, 17)
    path = 24 + 12 * np.stack([np.cos(a), np.sin(a)], 1)

    def film(shape: str, colour: str, ground: str) -> torch.Tensor:
        thing = Thing(shape, colour, path, np.full(1, 8.0))
        return render(Scene((thing,), Ground(ground), frames=17), size=144)

    reference = film("cross", "red", "grey")
    pairs = [Pair(reference, film(shape, "yellow", "blue")) for shape in SHAPES]
    metrics = METRICS["motion_fidelity/local"], METRICS["direction"]
    near, same = ([metric.measure(pair).value for pair in pairs] for metric in metrics)
    assert min(near) > 1 - metrics[0].tolerance
    assert min(same) < 1 - metrics[1].tolerance and same[SHAPES.index("cross")] > 0.9


def moving_square(step: float, frames: int = 13, size: int = 96) -> torch.Tensor:
    clip = torch.full((frames, size, size, 3), 60, dtype=torch.uint8)
    for t in range(frames):
        left = round(20 + step * t)
        clip[t, 30:60, left : left + 30] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    return clip


def test_a_pair_is_cut_to_the_shorter_clip_and_scaled_to_the_reference():
    """A longer clip of twice the size with the same motion scores as the same."""
    reference = moving_square(3)
    other = moving_square(3, frames=17).repeat_interleave(2, 1).repeat_interleave(2, 2)
    pair = Pair(reference, other)
    assert pair.other.shape == reference.shape
    for name in ("direction", "motion_fidelity/two_way"):
        assert METRICS[name].measure(pair).value > 0.97
    assert METRICS["speed_ratio"].measure(pair).value == pytest.approx(1, abs=0.05)
    assert METRICS["trajectory_error/frechet"].measure(pair).value < 0.05


def test_a_pair_needs_clips_of_two_frames():
    """One frame, floats or a missing axis raise ValueError that names the clip."""
    clip = moving_square(1)
    with pytest.raises(ValueError, match="other clip must be"):
        Pair(clip, clip[:1])
    with pytest.raises(ValueError, match="reference clip must be"):
        Pair(clip.float(), clip)


def test_two_frames_are_enough():
    """The shortest clip there is gets the same values."""
    clip = moving_square(3, frames=2)
    pair = Pair(clip, clip)
    for name in ("direction", "motion_fidelity/two_way", "speed_ratio", "trajectory_error/dtw"):
        assert METRICS[name].loss(METRICS[name].measure(pair).value) < 1e-6


def test_what_is_not_measured_tells_nothing():
    """nan comes with its reason and is never counted as seeing a defect."""
    clip = moving_square(0)
    measured = METRICS["direction"].measure(Pair(clip, clip))
    assert np.isnan(measured.value) and "does not move" in measured.note
    assert not METRICS["direction"].sees(measured.value)
