"""The checker against rendered truth: what it reads, where it sees objects and camera, also when degraded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fym.embedded.checker import (
    camera_cosine,
    read_clip,
    same_ground,
    true_steps,
    velocity_cosine,
)
from fym.embedded.checker.__main__ import blurred, compare, means, noisy, scenes_of
from fym.embedded.scenes import BACKGROUNDS, COLOURS, SHAPES, Camera, Ground, Scene, Thing, render

CLEAN = {"as rendered": lambda frames: frames, "noise": noisy, "blur": blurred}


def scene(*things: Thing, ground: Ground | None = None, camera: Camera | None = None) -> Scene:
    return Scene(things, ground or Ground("grey"), camera=camera or Camera(), frames=9)


def thing(
    shape: str = "square", colour: str = "red", x: float = 24.0, y: float = 24.0, r: float = 7.0, **more
) -> Thing:
    path = np.stack([x + np.linspace(-4, 4, 9), np.full(9, y)], 1)
    return Thing(shape, colour, path, np.full(1, r), **more)


@pytest.mark.parametrize("name", list(CLEAN))
def test_plain_scenes_are_read_right_and_tracked(name: str) -> None:
    """Whatever noise or blur: at most one shape in twelve is wrong, tracks are right to 0.35 pixels."""
    rows = [compare(read_clip(CLEAN[name](render(s))), s) for s in scenes_of("plain", 12)]
    found = means(rows)
    assert found["colour"] == found["background"] == found["objects"] == 1.0
    assert found["shape"] > 0.9 and found["one piece"] > 0.99
    assert found["track"] < 0.2 and found["track_95"] < 0.35


@pytest.mark.parametrize("background", list(BACKGROUNDS))
def test_every_colour_is_told_from_every_background(background: str) -> None:
    """Also from the nearest ones, as orange on yellow; no object is blamed for its background."""
    for colour, rgb in COLOURS.items():
        if np.abs(np.subtract(rgb, BACKGROUNDS[background])).max() > 70:
            reading = read_clip(noisy(render(scene(thing(colour=colour), ground=Ground(background)))))
            assert (reading.colour, reading.shape) == (colour, "square"), (colour, background)
            assert reading.background == background


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [5.0, 10.0])
def test_shapes_are_read_at_any_size_and_angle(shape: str, radius: float) -> None:
    turning = np.linspace(0, 2, 9)
    reading = read_clip(render(scene(thing(shape, r=radius, angle=turning))))
    assert reading.shape == shape


def test_objects_are_counted_and_each_is_tracked() -> None:
    """Touching ones too; the largest comes first."""
    several = scene(
        thing(x=14, r=8), thing("circle", "blue", x=28, r=7), thing("star", "yellow", x=34, y=38, r=5)
    )
    reading = read_clip(render(several))
    assert reading.colours == ("red", "blue", "yellow")
    assert reading.shapes == ("square", "circle", "star")
    assert np.abs(reading.tracks - several.tracks).max() < 0.5


def test_textures_do_not_break_an_object() -> None:
    reading = read_clip(render(scene(thing(r=10, texture="striped"))))
    assert (reading.colours, reading.shapes) == (("red",), ("square",))
    assert reading.one_piece.all()


@pytest.mark.parametrize(
    "ground",
    [
        Ground("red", "gradient", "cyan", angle=0.7),
        Ground("green", "striped", angle=0.3),
        Ground("pink", "checked", angle=0.3),
        Ground("cyan", "rough", seed=4),
        Ground("forest", "photo", seed=2),
        Ground("street", "photo", seed=1),
        Ground("blue", "shaded"),
    ],
    ids=lambda g: g.name,
)
def test_backgrounds_are_named_as_captions_name_them(ground: Ground) -> None:
    for degrade in CLEAN.values():
        reading = read_clip(degrade(render(scene(thing(colour="white"), ground=ground))))
        assert same_ground(reading.background, ground.name)
        assert reading.colour == "white"


def test_a_background_that_is_not_quite_even_is_no_pattern() -> None:
    """As a model paints it: slow unevenness of about three levels of 255."""
    coarse = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    uneven = 4 * torch.nn.functional.interpolate(coarse[:1], size=(48, 48), mode="bicubic").movedim(1, -1)
    for background in ("blue", "cyan", "brown", "green"):
        frames = render(scene(thing(colour="red"), ground=Ground(background)))
        painted = (frames + uneven).round().clamp(0, 255).to(torch.uint8)
        assert read_clip(painted).background == background


def test_a_gradient_may_be_read_from_either_end_but_is_not_another_gradient() -> None:
    assert same_ground("red and blue gradient", "blue and red gradient")
    assert not same_ground("red and blue gradient", "blue and pink gradient")
    assert not same_ground("blue", "blue and pink gradient")


@pytest.mark.parametrize("move", ["pan", "zoom", "roll"])
def test_the_camera_is_followed(move: str) -> None:
    t = np.linspace(0, 1, 9)
    camera = {
        "pan": Camera(24 + t[:, None] * np.array([4.0, -2.0])),
        "zoom": Camera(zoom=1.2**t),
        "roll": Camera(roll=0.4 * t),
    }[move]
    moving = scene(ground=Ground("forest", "photo"), camera=camera)
    steps, truth = read_clip(noisy(render(moving))).camera, true_steps(camera, 9)
    assert camera_cosine(steps, truth) > 0.95
    assert camera_cosine(-steps, truth) < -0.95
    assert np.abs(steps - truth).max() < 0.5


def test_a_still_camera_does_not_move_behind_a_moving_object() -> None:
    reading = read_clip(render(scene(thing(), ground=Ground("forest", "photo"))))
    assert np.abs(reading.camera).max() < 0.1


def test_what_is_wrong_with_a_clip_shows() -> None:
    """A torn object, none at all, a flickering background."""
    frames = render(scene(thing(r=9)))
    torn = frames.clone()
    torn[:, :, 22:27] = torch.tensor(BACKGROUNDS["grey"], dtype=torch.uint8)
    assert read_clip(frames).one_piece.all() and read_clip(torn).one_piece.mean() < 0.2
    empty = read_clip(render(scene()))
    assert not empty.present.any() and empty.shape == empty.colour == "none"
    assert np.isnan(empty.track).all()
    bright = frames.clone().int()
    bright[::2] += 12
    assert read_clip(frames).flicker < 0.1
    assert read_clip(bright.clamp(0, 255).to(torch.uint8)).flicker == pytest.approx(12, abs=0.5)


def test_velocity_cosine_counts_what_is_not_seen_as_zero() -> None:
    line = np.arange(5.0)[:, None] * np.array([[1.0, 0.5]])
    lost = line.copy()
    lost[2] = np.nan
    assert velocity_cosine(line, line) == pytest.approx(1)
    assert velocity_cosine(-line, line) == pytest.approx(-1)
    assert velocity_cosine(lost, line) == pytest.approx(0.5)
