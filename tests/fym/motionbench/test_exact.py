"""Exact scores: a perfect transfer has full marks, the reference is all leak, and objects are told apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fym.embedded.checker import read_clip, velocity_cosine
from fym.embedded.scenes import Camera, Ground, Scene, Thing, render
from fym.motionbench.exact import Seen
from fym.motionbench.suite import cases

T = np.linspace(0, 1, 49)


def thing(shape: str, colour: str, path: np.ndarray) -> Thing:
    return Thing(shape, colour, path, np.full(1, 7.0))


def line(begin: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    return np.array(begin) + T[:, None] * (np.array(end) - np.array(begin))


TWO_WAYS = (line((10, 12), (38, 12)), line((36, 36), (12, 36)))
TWO = Scene(
    tuple(
        thing(*look, path)
        for look, path in zip((("circle", "red"), ("star", "black")), TWO_WAYS, strict=True)
    ),
    Ground("grey"),
)
TWO_IDEAL = replace(
    TWO,
    things=tuple(
        thing(*look, path)
        for look, path in zip((("square", "white"), ("triangle", "yellow")), TWO_WAYS, strict=True)
    ),
    ground=Ground("blue"),
)


def seen(clip: torch.Tensor, scene: Scene, ideal: Scene) -> Seen:
    return Seen(read_clip(clip), clip.shape[2], scene, ideal)


@pytest.mark.parametrize("name", ["object/bounce", "object/spiral"])
def test_a_perfect_transfer_has_full_marks_and_the_reference_is_all_leak(name: str) -> None:
    [case] = cases(names=[name])
    ideal = case.ideal(case.targets[0])
    assert case.scene is not None and ideal is not None
    perfect = seen(render(ideal), case.scene, ideal).scores()
    assert perfect["cosine"] > 0.9 and perfect["one_piece"] == 1.0
    assert set(perfect["right"].values()) == {1.0} and set(perfect["leaked"].values()) == {0.0}
    itself = seen(render(case.scene), case.scene, ideal).scores()
    assert itself["cosine"] > 0.9
    assert set(itself["right"].values()) == {0.0} and set(itself["leaked"].values()) == {1.0}


def test_one_object_is_scored_by_the_largest_track_that_is_seen() -> None:
    """The definition that the figures of earlier tables have."""
    [case] = cases(names=["object/zig-zag"])
    ideal = case.ideal(case.targets[1])
    assert case.scene is not None and ideal is not None
    reading = read_clip(render(ideal))
    score = Seen(reading, 48, case.scene, ideal).scores()["cosine"]
    assert score == velocity_cosine(reading.track, case.scene.track)


def test_a_frozen_clip_has_no_motion_and_a_reversed_one_the_opposite() -> None:
    scene = Scene((thing("circle", "red", line((10, 24), (38, 24))),), Ground("grey"))
    frames = render(scene)
    assert seen(frames[:1].expand_as(frames), scene, scene).scores()["cosine"] == 0
    assert seen(frames.flip(0), scene, scene).scores()["cosine"] < -0.9


@pytest.mark.parametrize("look", [TWO, TWO_IDEAL], ids=["the reference's colours", "the prompt's colours"])
def test_several_objects_are_matched_by_colour(look: Scene) -> None:
    score = seen(render(look), TWO, TWO_IDEAL).scores()
    assert score["cosine"] > 0.8
    right = float(look is TWO_IDEAL)
    assert score["right"] == {"background": right, "shape": right, "colour": right}
    assert score["leaked"] == {"background": 1 - right, "shape": 1 - right, "colour": 1 - right}


def test_swapped_colours_are_the_wrong_motion_and_a_missing_object_counts_nothing() -> None:
    first, second = TWO_IDEAL.things
    swapped = (replace(first, path=second.path), replace(second, path=first.path))
    assert seen(render(replace(TWO_IDEAL, things=swapped)), TWO, TWO_IDEAL).scores()["cosine"] < -0.9
    alone = seen(render(replace(TWO_IDEAL, things=(first,))), TWO, TWO_IDEAL).scores()
    assert 0.45 < alone["cosine"] <= 0.5 and alone["right"]["shape"] == 0.5


def test_the_camera_counts_where_nothing_else_moves() -> None:
    camera = Camera(centre=line((18, 24), (30, 24)))
    scene = Scene((), Ground("green", "checked", angle=0.4), camera=camera)
    ideal = replace(scene, ground=Ground("yellow", "checked", angle=0.4))
    score = seen(render(ideal), scene, ideal).scores()
    assert score["cosine"] > 0.9 and score["right"] == {"background": 1.0} and "one_piece" not in score
    still = replace(scene, things=(thing("circle", "red", np.full((1, 2), 24.0)),))
    both = seen(render(still), still, still).scores()
    assert both["cosine"] == both["camera_cosine"] > 0.9
    followed = replace(scene, things=(thing("circle", "red", camera.centre),))
    both = seen(render(followed), followed, followed).scores()
    assert both["cosine"] == both["camera_cosine"] > 0.9


def test_an_object_that_only_turns_has_no_cosine() -> None:
    scene = Scene((replace(thing("star", "red", np.full((1, 2), 24.0)), angle=4 * T),), Ground("grey"))
    assert math.isnan(seen(render(scene), scene, scene).scores()["cosine"])


def test_a_larger_picture_has_the_same_scores() -> None:
    [case] = cases(names=["object/hook"])
    ideal = case.ideal(case.targets[0])
    assert case.scene is not None and ideal is not None
    small, large = (seen(render(ideal, size=size), case.scene, ideal).scores() for size in (48, 96))
    assert large["cosine"] == pytest.approx(small["cosine"], abs=0.05)
    assert large["right"] == small["right"]
