"""The rendered world: exact ground truth, honest captions, no excluded motion, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fym.embedded import scenes
from fym.embedded.scenes import captions, figure, make_assets
from fym.embedded.scenes.backgrounds import KINDS as GROUND_KINDS
from fym.embedded.scenes.camera import CAMERA_MOVES, Camera
from fym.embedded.scenes.colours import pattern
from fym.embedded.scenes.sampling import CHANGES, KINDS

MANY = 150


def draw(kind: str, seed: int) -> scenes.Scene:
    return scenes.sample_scene(np.random.default_rng((1, seed)), kind=kind)


def centroids(mask: torch.Tensor) -> np.ndarray:
    """(F, 2) of (F, H, W); NaN where the mask reaches the border, so that part of it may be missing."""
    axis = torch.arange(mask.shape[-1]) + 0.5
    area = mask.sum((1, 2))
    centre = torch.stack([(mask * axis).sum((1, 2)), (mask * axis[:, None]).sum((1, 2))], 1) / area[:, None]
    border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], 1).amax(1) > 0
    centre[border] = torch.nan
    return centre.numpy()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("size", [48, 96])
def test_a_mask_is_centred_on_its_track(kind: str, size: int) -> None:
    """Within a fifth of a pixel: the masks are anti-aliased over one pixel. Hidden objects are left aside."""
    checked = 0
    for seed in range(6):
        scene = draw(kind, seed)
        masks = scenes.render_with_masks(scene, size=size)[1]
        if len(masks):  # the last object is in front: all of it is visible
            error = np.abs(centroids(masks[-1]) - scene.tracks[-1] * size / 48)
            checked += int(np.isfinite(error).sum())
            assert np.nanmax(error, initial=0.0) < 0.2
    assert checked > 50


@pytest.mark.parametrize("recording", figure.UNSEEN_FIGURE_MOTIONS.values())
def test_the_figure_is_centred_however_it_turns(recording: str) -> None:
    pose = figure.poses(recording, 12, view=0.3)
    pose = pose - figure.centre_of_area(pose)[:, None]
    thing = scenes.Thing("person", "white", np.full((12, 2), 24.0), np.full(1, 12.0), pose=pose)
    masks = scenes.render_with_masks(scenes.Scene((thing,), scenes.Ground("black"), frames=12))[1]
    assert np.nanmax(np.abs(centroids(masks[0]) - 24.0)) < 0.2


def test_masks_are_what_is_visible() -> None:
    """Later objects hide earlier ones, and a pixel that is all object has the object's colour."""
    for seed in range(4):
        scene = draw("several", seed)
        frames, masks = scenes.render_with_masks(scene)
        assert masks.sum(0).max() <= 1 + 1e-5
        for thing, mask in zip(scene.things, masks, strict=True):
            paint = torch.tensor(scenes.COLOURS[thing.colour]) * thing.tint
            inside = frames[mask > 0.999].float()
            assert (inside - paint.clamp(max=255)).abs().max() <= 1


def test_seeds_reproduce() -> None:
    for seed in range(12):
        a, b = (scenes.sample_scene(np.random.default_rng((2, seed))) for _ in range(2))
        assert a.prompt == b.prompt
        assert torch.equal(scenes.render(a), scenes.render(b))


@pytest.mark.parametrize("kind", ["person", "camera", "changing"])
def test_some_frames_of_a_scene_are_those_frames(kind: str) -> None:
    scene, index = draw(kind, 4), [0, 7, 7, 30]
    assert torch.equal(scenes.render(scenes.at_frames(scene, index)), scenes.render(scene)[index])


# --------------------------------------------------------------------------- camera
@pytest.mark.parametrize("move", list(CAMERA_MOVES))
def test_the_camera_maps_pixels_to_the_world_and_back(move: str) -> None:
    t = np.linspace(0, 1, 5)
    camera = CAMERA_MOVES[move](t, np.random.default_rng(0))
    camera = Camera(camera.centre, camera.zoom, np.linspace(0, 1, 5))
    x, y = (v.expand(5, 48, 48) for v in camera.to_world(48))
    for row, column in ((0, 0), (10, 40)):
        world = np.stack([x[:, row, column], y[:, row, column]], 1)
        np.testing.assert_allclose(camera.to_frame(world), [[column + 0.5, row + 0.5]] * 5, atol=1e-4)


@pytest.mark.parametrize("ground", ["checked", "rough", "photo"])
def test_a_pan_moves_the_background_by_exactly_its_shift(ground: str) -> None:
    centre = 24.0 + np.array([[0, 0], [5, 0], [0, -3]])
    paper = scenes.Ground("forest" if ground == "photo" else "green", ground, angle=0.4, seed=3)
    frames = scenes.render(scenes.Scene((), paper, camera=Camera(centre), frames=3)).int()
    assert (frames[1][:, :-5] - frames[0][:, 5:]).abs().max() <= 1
    assert (frames[2][3:] - frames[0][:-3]).abs().max() <= 1
    assert (frames[1] - frames[0]).abs().float().mean() > 2  # the move is seen


def test_the_camera_named_is_the_camera_used() -> None:
    growing = {"zooms in": True, "zooms out": False}
    for move, camera_of in CAMERA_MOVES.items():
        camera = camera_of(np.linspace(0, 1, 49), np.random.default_rng(1))
        if move in growing:
            assert (camera.zoom[-1] > camera.zoom[0]) == growing[move]
        elif move not in ("shakes", "wanders"):
            step = camera.centre[-1] - camera.centre[0]
            towards = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[move.split()[-1]]
            assert step @ np.array(towards) > 10


# --------------------------------------------------------------------------- what is sampled and said
def test_excluded_motions_are_never_sampled() -> None:
    allowed = {*scenes.MOTIONS, *CHANGES, *figure.FIGURE_MOTIONS}
    assert not allowed & set(scenes.UNSEEN_MOTIONS)
    assert not set(figure.FIGURE_MOTIONS.values()) & set(figure.UNSEEN_FIGURE_MOTIONS.values())
    excluded = [*scenes.UNSEEN_MOTIONS, *figure.UNSEEN_FIGURE_MOTIONS]
    for seed in range(8 * MANY):
        scene = scenes.sample_scene(np.random.default_rng((3, seed)))
        assert {t.motion for t in scene.things} <= allowed
        assert not any(f" {word}" in scene.prompt for word in excluded), scene.prompt
        if np.ptp(scene.camera.roll) > 0:  # the camera wanders; it never only turns
            assert np.ptp(scene.camera.centre, axis=0).max() > 4
        circling = sum("clockwise" in t.motion and "spinning" not in t.motion for t in scene.things)
        assert circling <= 1  # two would be an orbiting pair
        for thing in scene.things:  # who turns stays or wanders: a roll is a turn along a line
            if np.ptp(thing.angle) > 0:
                assert thing.motion in CHANGES


def test_unseen_motions_stay_in_sight_and_choices_are_apart_from_the_test() -> None:
    everything = {*scenes.UNSEEN_MOTIONS, *scenes.UNSEEN_CAMERA_MOVES}
    assert len(scenes.TEST) >= 12 and not set(scenes.TEST) & set(scenes.DEVELOPMENT)
    assert {*scenes.TEST, *scenes.DEVELOPMENT} == everything
    assert not set(scenes.UNSEEN_CAMERA_MOVES) & set(CAMERA_MOVES)
    for motion in everything:
        scene = scenes.unseen_scene(motion)
        assert motion not in scene.prompt
        assert scene.camera.moves == (motion in scenes.UNSEEN_CAMERA_MOVES) == (not scene.things)
        if scene.things:
            assert scene.track.min() > 8 and scene.track.max() < 40
            assert np.linalg.norm(np.diff(scene.track, axis=0), axis=1).sum() > 25


def test_the_kinds_have_shares_and_plain_scenes_are_plain() -> None:
    assert sum(KINDS.values()) == pytest.approx(1.0)
    plain = [draw("plain", seed) for seed in range(MANY)]
    assert all(len(s.things) == 1 and s.things[0].texture == "plain" for s in plain)
    assert all(s.ground.kind in ("plain", "shaded") and not s.camera.moves for s in plain)


@pytest.mark.parametrize("kind", list(KINDS))
def test_captions_name_what_is_seen(kind: str) -> None:
    unnamed = 0
    for seed in range(MANY // 3):
        scene = draw(kind, seed)
        for thing in scene.things:
            names = captions.SYNONYMS[thing.shape]
            assert any(f"{thing.colour} {name}" in scene.prompt for name in names), scene.prompt
            assert (thing.texture == "plain") == (f"{thing.texture} {thing.colour}" not in scene.prompt)
        where = captions.PLACES.get(scene.background, f"{scene.background} background")
        assert where.removeprefix("on ") in scene.prompt, scene.prompt
        assert scene.camera.moves or "the camera" not in scene.prompt
        if kind == "camera":
            unnamed += "the camera" not in scene.prompt
    assert unnamed < MANY // 6  # a camera that wanders is named half of the time, another always


def test_the_plain_grammar_is_that_of_the_first_version() -> None:
    assert scenes.caption("star", "red", "blue", "moving left", "small") == (
        "a small red star moving left on a blue background"
    )
    assert scenes.unseen_scene("spiral").prompt == "a red circle on a grey background"


def test_objects_stand_out_from_plain_backgrounds() -> None:
    for seed in range(MANY):
        scene = draw("plain", seed)
        difference = np.subtract(scenes.COLOURS[scene.colour], scenes.BACKGROUNDS[scene.background])
        assert np.abs(difference).max() > 70


# --------------------------------------------------------------------------- parts
@pytest.mark.parametrize("texture", scenes.TEXTURES[1:])
def test_a_texture_shows_both_colours_and_repeats(texture: str) -> None:
    x, y = torch.meshgrid(torch.arange(40.0) + 0.3, torch.arange(40.0) + 0.3, indexing="xy")
    share = pattern(texture, x, y, 8.0)
    assert share.min() == 0 and share.max() == 1 and 0.2 < share.mean() < 0.8
    torch.testing.assert_close(share[:, 8:], share[:, :-8], atol=1e-4, rtol=0)


def test_every_kind_of_background_can_be_painted() -> None:
    for kind in GROUND_KINDS:
        ground = scenes.Ground(
            "meadow" if kind == "photo" else "pink", kind, "blue" if kind == "gradient" else ""
        )
        frames = scenes.render(scenes.Scene((), ground, frames=2))
        assert frames.shape == (2, 48, 48, 3)
        assert (frames.float().std((0, 1, 2)).max() == 0) == (kind == "plain")


def test_unknown_names_say_what_is_known() -> None:
    x = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="known: plain, striped"):
        pattern("furry", x, x, 4.0)
    with pytest.raises(ValueError, match="known: plain, shaded"):
        scenes.render(scenes.Scene((), scenes.Ground("red", "furry"), frames=1))


def test_forward_kinematics_keeps_the_bones() -> None:
    """Whatever the joints do, the kept recordings have the lengths of the skeleton (to the millimetre)."""
    with np.load(figure.MOTION_CAPTURE) as stored:
        joints = stored["cartwheel"].astype(float) / 1000
    for child, (parent, offset) in make_assets.SKELETON.items():
        if parent:
            bone = joints[:, figure.JOINTS.index(child)] - joints[:, figure.JOINTS.index(parent)]
            length = np.linalg.norm(bone, axis=1)
            # straight-line interpolation between frames shortens a fast limb a little
            np.testing.assert_allclose(length, np.linalg.norm(offset), atol=0.01)
