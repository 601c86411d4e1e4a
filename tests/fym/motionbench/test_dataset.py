"""The synthetic part: enough cases, motions the embedded model never saw, looks it knows, exact truth."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fym.embedded import model_path, scenes
from fym.embedded.checker import camera_cosine, true_steps
from fym.embedded.checker import read_clip as read_objects
from fym.embedded.scenes import figure
from fym.embedded.text import MAX_TOKENS
from fym.motionbench.attributes import embedded_world
from fym.motionbench.case import Case
from fym.motionbench.categories import CATEGORIES
from fym.motionbench.hashes import TABLE, known_hashes
from fym.motionbench.scenes import camera, human
from fym.motionbench.suite import DATASET, VERSION, cases, synthetic
from fym.motionbench.truth import true_tracks

DOCUMENT = Path(__file__).parents[3] / "docs" / "motionbench.md"
CASES = synthetic()
TIMES = np.linspace(0, 1, scenes.FRAMES)
MOVING = {word for phrase, _ in scenes.MOTIONS.values() for word in phrase.split()}
MOVING |= {word for phrase in (*figure.FIGURE_MOTIONS, *scenes.CAMERA_MOVES) for word in phrase.split()}
MOVING -= {"and", "in", "the"}


def ids(case: Case) -> str:
    return case.name


def test_each_category_has_ten_test_cases_and_some_for_development():
    found = Counter((case.category, case.split) for case in CASES)
    for category in CATEGORIES:
        assert found[category, "test"] >= 10
        assert found[category, "development"] >= 2
    assert len({case.name for case in CASES}) == len({case.file_name for case in CASES}) == len(CASES)
    assert all(re.fullmatch(r"[\w.,-]+", case.file_name) for case in CASES)


def test_the_cases_of_a_choice():
    names = [case.name for case in cases(category="human", split="development")]
    assert names == ["human/slow dance backwards", "human/kick and back"]
    assert [case.name for case in cases(names=["object/wave", "camera/arc"])] == ["object/wave", "camera/arc"]
    with pytest.raises(Exception, match="there is no case 'object/nothing'"):
        cases(names=["object/nothing"])


# --------------------------------------------------------------------------- motions
def residual(path: np.ndarray, basis: list[np.ndarray]) -> float:
    """Root mean square distance of a path (F, 2) from the span of the basis, pixels."""
    matrix = np.stack([np.ones(len(path)), *basis], 1)
    rest = path - matrix @ np.linalg.lstsq(matrix, path, rcond=None)[0]
    return float(np.sqrt(np.square(rest).sum(1).mean()))


def is_a_trained_path(path: np.ndarray) -> bool:
    """Still, straight at constant speed, or on a circle at constant speed with 0.9 to 1.6 turns."""
    if residual(path, [TIMES]) < 0.5:
        return True
    for turns in np.linspace(0.9, 1.6, 36):
        a = 2 * np.pi * turns * TIMES
        matrix = np.stack([np.ones_like(a), np.cos(a), np.sin(a)], 1)
        (_, cosine, sine), *_ = np.linalg.lstsq(matrix, path, rcond=None)
        round_ = (
            abs(cosine @ sine) < 0.05 * (cosine @ cosine) and abs(np.hypot(*cosine) - np.hypot(*sine)) < 0.5
        )
        if round_ and residual(path, [np.cos(a), np.sin(a)]) < 0.5:
            return True
    return False


def changes_both_ways(values: np.ndarray) -> bool:
    steps = np.diff(values)
    return bool((steps > 1e-6).any() and (steps < -1e-6).any())


@pytest.mark.parametrize("case", [c for c in CASES if c.category in ("object", "objects")], ids=ids)
def test_no_object_moves_as_in_training(case):
    """One is on no trained path, or turns or grows as none does, or two are on circles: never trained."""
    things = case.scene.things
    trained = [is_a_trained_path(np.broadcast_to(t.path, (scenes.FRAMES, 2))) for t in things]
    circling = sum(
        np.ptp(t.path, axis=0).min() > 4 for t, known in zip(things, trained, strict=True) if known
    )
    odd = any(changes_both_ways(t.radius) or changes_both_ways(t.angle) for t in things)
    assert not all(trained) or odd or circling > 1


@pytest.mark.parametrize("case", [c for c in CASES if c.category == "camera"], ids=ids)
def test_no_camera_moves_as_in_training(case):
    """Training has pans and tilts along an axis at constant speed, steady zooms, and small shakes."""
    view = case.scene.camera
    centre = np.broadcast_to(view.centre, (scenes.FRAMES, 2))
    zoom, roll = (np.broadcast_to(v, scenes.FRAMES) for v in (view.zoom, view.roll))
    steady = residual(centre, [TIMES]) < 0.3 and np.ptp(centre, axis=0).min() < 1e-6
    steady_zoom = np.ptp(np.diff(np.log(zoom))) < 1e-6
    assert np.ptp(roll) > 0.1 or not steady or not steady_zoom or (np.ptp(centre) > 0 and np.ptp(zoom) > 0)


@pytest.mark.parametrize("name", human.NAMES)
def test_no_person_moves_as_in_training(name):
    """From no start is a trained recording, mirrored or not, nearer than 5 cm a joint."""
    joints = human.HUMAN[name][0]()
    own = joints - joints[:, :1]
    for recording in figure.FIGURE_MOTIONS.values():
        whole = figure.recordings()[recording]
        whole = whole - whole[:, :1]
        for start in range(len(whole)):
            index = start + np.arange(len(own))
            loops = recording in figure.LOOPS
            index = index % (len(whole) - 1) if loops else np.minimum(index, len(whole) - 1)
            for mirror in (1, -1):
                assert np.linalg.norm(own - whole[index] * [mirror, 1, 1], axis=-1).mean() > 0.05


@pytest.mark.parametrize("name", human.NAMES)
def test_joined_recordings_have_no_jumps_and_keep_their_bones(name):
    """No joint outruns the fastest one of the recordings, 0.75 m in a frame, and no bone changes much."""
    joints = human.HUMAN[name][0]()
    assert joints.shape == (scenes.FRAMES, 16, 3)
    assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() < 0.75
    knee, ankle = (figure.JOINTS.index(f"right_{part}") for part in ("knee", "ankle"))
    shin = np.linalg.norm(joints[:, knee] - joints[:, ankle], axis=-1)
    assert shin.min() > 0.8 * shin.max()


@pytest.mark.parametrize("case", [c for c in CASES if c.category != "camera"], ids=ids)
def test_nothing_leaves_the_frame(case):
    masks = scenes.render_with_masks(case.scene)[1]
    border = torch.cat([masks[..., 0, :], masks[..., -1, :], masks[..., 0], masks[..., -1]], -1)
    assert border.max() < 0.2  # the tip of a star


def test_an_object_at_another_depth_is_seen_where_it_should():
    """Whatever the camera does, and as large, and upright."""
    view = scenes.Camera(24 + 5 * np.stack([TIMES, -TIMES], 1), 1.5**TIMES, 0.6 * TIMES)
    place = np.stack([10 + 20 * TIMES, 30 - 5 * TIMES], 1)
    body = camera.body_seen(view, place, np.full(scenes.FRAMES, 6.0))
    assert np.allclose(view.to_frame(body.path), place)
    assert np.allclose(body.radius * view.zoom, 6.0)
    assert np.allclose(body.angle, view.roll)


# --------------------------------------------------------------------------- looks
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_targets_change_all_that_is_seen_and_only_that(case):
    assert len({t.prompt for t in case.targets}) >= 3
    for target in case.targets:
        ideal = case.ideal(target)
        assert ideal.prompt == target.prompt
        assert np.array_equal(ideal.tracks, case.scene.tracks)
        for name in case.shown.keys() & target.wanted.keys():
            assert case.shown[name] != target.wanted[name]
        colours = {c for _, c in case.look.objects} & {c for _, c in target.look.objects}
        shapes = ({s for s, _ in case.look.objects} & {s for s, _ in target.look.objects}) - {"person"}
        assert not colours and not shapes


def test_the_embedded_model_knows_every_caption():
    """Each word is one token of its tokenizer, the whole fits, and no word is about motion."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path() / "tokenizer")
    for case in CASES:
        for prompt in (case.prompt, *(target.prompt for target in case.targets)):
            words = prompt.replace(",", " ,").split()
            assert not MOVING & set(words)
            ids = tokenizer(prompt).input_ids
            assert len(ids) <= MAX_TOKENS
            assert len(ids) == len(words) + 1  # and the end of the text


@pytest.mark.parametrize(
    "name",
    ["camera/corner", "camera/push in", "object/rocking", "objects/mirror", "objects/carousel", "human/spin"],
)
def test_a_perfect_transfer_is_read_right(name):
    """Its attributes are the wanted ones, and none is the reference's."""
    [case] = cases(names=[name])
    assert embedded_world(scenes.render(case.scene)).items() >= case.shown.items()
    for target in case.targets:
        found = embedded_world(scenes.render(case.ideal(target)))
        assert found.items() >= target.wanted.items()
        assert not found.items() & case.shown.items()


@pytest.mark.parametrize("name", ["camera/round", "camera/truck past", "camera/turn", "camera/handheld walk"])
def test_the_move_of_the_camera_can_be_read_off_the_clip(name):
    [case] = cases(names=[name])
    seen = read_objects(scenes.render(case.scene)).camera
    assert camera_cosine(seen, true_steps(case.scene.camera, scenes.FRAMES)) > 0.95


# --------------------------------------------------------------------------- truth and reproducibility
@pytest.mark.parametrize("name", ["human/cartwheel", "human/run in a circle"])
def test_points_of_a_person_stay_on_it(name):
    """Nearly all, in every frame: where a limb is seen from its end, points beside it may slip off."""
    [case] = cases(names=[name])
    tracks = true_tracks(case.scene, size=96)
    masks = scenes.render_with_masks(case.scene, size=96)[1][0].numpy()
    begin = tracks.points[np.arange(len(tracks.points)), tracks.starts]
    x, y = np.rint(begin).astype(int).T
    points = tracks.points[masks[tracks.starts, y, x] > 0.5]
    assert len(points) > 50
    x, y = np.rint(points).astype(int).transpose(2, 1, 0)
    inside = masks[np.arange(scenes.FRAMES)[:, None], y, x] > 0.25
    assert inside.mean() > 0.95
    x, y = np.rint(begin).astype(int).T
    ground = tracks.points[masks[tracks.starts, y, x] < 0.01]
    assert np.ptp(ground, axis=1).max() == 0


def test_points_on_a_bone_stay_on_it():
    """A point halfway between hip and knee is halfway between them in every frame."""
    pose = figure.poses("cartwheel", 20)
    hip, knee = (pose[:, figure.JOINTS.index(f"left_{part}")] for part in ("hip", "knee"))
    born = np.array([0, 7])
    carried = figure.carried((hip[born] + knee[born]) / 2, born, pose)
    assert np.allclose(carried, ((hip + knee) / 2)[None], atol=1e-6)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="other rounding"
)
def test_the_frames_are_those_of_the_version():
    """To the byte; whoever changes a motion, a look or the renderer must raise VERSION."""
    stored = json.loads(TABLE.read_text("utf-8"))
    assert (stored["dataset"], stored["version"]) == (DATASET, VERSION)
    assert known_hashes() == {case.name: case.sha256() for case in CASES}


def test_lengths_scale_with_the_size():
    """A clip of twice the size, averaged over squares of four pixels, is the clip."""
    for name in ("objects/crossing", "human/backflip"):
        [case] = cases(names=[name])
        small, large = case.clip()[0].float(), case.clip(96)[0].float()
        halved = large.unflatten(1, (48, 2)).unflatten(3, (48, 2)).mean((2, 4))
        assert (halved - small).abs().mean() < 1.0


def test_the_documentation_names_every_case():
    """Each motion stands in the row and column of its category and split."""
    rows = [line.split("|") for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("| `")]
    table = {row[1].split("`")[1]: row[2:4] for row in rows if "+" in row[1]}
    for case in CASES:
        column = table[case.category][("test", "development").index(case.split)]
        assert case.name.split("/")[1] in column
