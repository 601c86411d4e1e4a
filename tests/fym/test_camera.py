"""The camera: found exactly where it is exactly known, closely in rendered clips, and put over a still."""

from __future__ import annotations

import numpy as np
import pytest
from known_motion import halves, pan, rolling, tracks, zoom

from fym.camera import camera_path, course, moved, moving_time, parts, seen_from, turned
from fym.embedded.scenes import UNSEEN_CAMERA_MOVES, Ground, Scene, render
from fym.motionbench.suite import cases
from fym.tracks import Tracks, track


def test_the_camera_is_found_exactly():
    """Shift, zoom and roll of every frame pair, to the rounding of 32-bit tracks."""
    path = camera_path(tracks(pan(1.5, -0.5)))
    assert path.shape == (12, 2, 3)
    assert np.allclose(path[:, :, 2], [1.5, -0.5], atol=1e-3)
    turn, growth = parts(camera_path(tracks(rolling(2.0))))
    assert np.allclose(np.degrees(turn), 2, atol=1e-2) and np.allclose(growth, 0, atol=1e-4)
    turn, growth = parts(camera_path(tracks(zoom(0.02))))
    t = np.arange(12)
    assert np.allclose(growth, np.log((1 + 0.02 * (t + 1)) / (1 + 0.02 * t)), atol=1e-4)
    assert np.allclose(turn, 0, atol=1e-4)
    there = moved(camera_path(tracks(pan(1.5))), np.zeros((3, 12, 2)))
    assert np.allclose(there, [1.5, 0], atol=1e-3)


@pytest.mark.parametrize("frames", [2, 5, 13, 15])
def test_the_course_leads_from_the_first_frame_to_every_other(frames):
    """To the rounding of 32-bit tracks; in clips of whole strides, and of less."""
    points = np.random.default_rng(0).uniform(0, 100, (9, 2))
    for move in (pan(1.5, -0.5), rolling(2.0), zoom(0.02)):
        way = course(tracks(move, frames=frames))
        assert way.shape == (frames, 3, 3) and np.array_equal(way[0], np.eye(3))
        for t, place in enumerate(way):
            exact = move(points[:, None], np.array([[[t]]]))[:, 0]
            assert np.allclose(points @ place[:2, :2].T + place[:2, 2], exact, atol=5e-3)


def test_by_how_much_the_camera_turns():
    """To and fro counts once, a whole turn as one."""
    assert turned(course(tracks(pan(1)))) == pytest.approx(0, abs=1e-3)
    assert np.degrees(turned(course(tracks(rolling(2))))) == pytest.approx(24, abs=0.1)
    assert np.degrees(turned(course(tracks(rolling(-30))))) == pytest.approx(360, abs=1)


def test_where_the_camera_is_unknown_it_rests():
    known = tracks(pan(1.5))
    visible = known.visible.copy()
    visible[:, 7:] = False
    way = course(Tracks(known.points, visible, known.starts, known.size))
    assert np.allclose(way[6, :2, 2], [9, 0], atol=1e-3) and np.allclose(way[6:], way[6])


def rendered(name: str) -> Tracks:
    [case] = cases(names=[name])
    return track(case.clip()[0])


@pytest.mark.parametrize("case", cases(part="synthetic", category="camera"), ids=lambda case: case.name)
def test_the_course_of_rendered_cameras(case):
    """Corners of the 48 pixel frame are 0.02 to 0.6 pixels off (push in), mean over the clip; the camera
    moves for 0.71 of the time (pan with a stop) or more."""
    frames, camera = case.clip()[0], case.scene.camera
    turn, zooms, centre = (
        np.broadcast_to(value, (len(frames), *np.shape(value)[1:]))
        for value in (camera.roll, camera.zoom, camera.centre)
    )

    def seen(points, t):
        """Pixels of the first frame in frame t, exactly."""
        c, s = np.cos(turn[0]), np.sin(turn[0])
        world = (points + 0.5 - 24) / zooms[0] @ np.array([[c, s], [-s, c]]) + centre[0]
        c, s = np.cos(turn[t]), np.sin(turn[t])
        return (world - centre[t]) @ np.array([[c, -s], [s, c]]) * zooms[t] + 24 - 0.5

    corners = np.array([(0.0, 0.0), (47.0, 0.0), (0.0, 47.0), (47.0, 47.0)])
    assert np.allclose(seen(corners, 0), corners)
    tracks = rendered(case.name)
    way = course(tracks)
    off = [
        np.linalg.norm(corners @ place[:2, :2].T + place[:2, 2] - seen(corners, t), axis=1).mean()
        for t, place in enumerate(way)
    ]
    assert np.mean(off) < 0.8 and moving_time(tracks) > 0.65


@pytest.mark.parametrize(
    ("move", "share"),
    [(pan(0.5), 1), (zoom(0.02), 1), (rolling(2), 1), (pan(0.02), 0), (halves((0, 0), (2, 0), 60), 0)],
    ids=["pan", "zoom", "roll", "jitter", "large object"],
)
def test_how_long_the_camera_moves(move, share):
    assert moving_time(tracks(move)) == share


@pytest.mark.parametrize(
    "name", ["object/square lap", "object/triangle lap", "objects/scatter", "human/tumble"]
)
def test_rendered_objects_are_no_camera(name):
    """Of the rendered references that are none the square lap moves longest, for 0.27 of its time."""
    assert moving_time(rendered(name)) < 0.35


def test_a_still_under_a_pan_is_the_still_shifted():
    """Whole pixels: exact, mirrored beyond the edge; the still is the view of the middle frame."""
    still = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    way = np.tile(np.eye(3), (5, 1, 1))
    way[:, 0, 2] = [0, 2, 4, 6, 8]
    seen = seen_from(still, way)
    assert seen.shape == (5, 20, 30, 3) and np.array_equal(seen[2], still)
    assert np.array_equal(seen[0][:, :-4], still[:, 4:]) and np.array_equal(seen[4][:, 4:], still[:, :-4])
    assert np.array_equal(seen[4][:, :4], still[:, 4:0:-1])


@pytest.mark.parametrize("move", ["camera round", "camera turn", "camera pulse"])
def test_the_camera_is_found_again_in_what_it_sees_of_a_still(move):
    """A still of rough ground on the course of a clip over another: as far from it as trackers are."""
    t, rng = np.linspace(0, 1, 49), np.random.default_rng(0)
    scene = Scene((), Ground("pink", "rough", seed=1), "", UNSEEN_CAMERA_MOVES[move](t, rng), 49)
    way = course(track(render(scene)))
    still = render(Scene((), Ground("green", "rough", seed=2), "", frames=1))[0].numpy()
    again = course(track(seen_from(still, way)))
    corners = np.array([(0.0, 0.0, 1.0), (47.0, 0.0, 1.0), (0.0, 47.0, 1.0), (47.0, 47.0, 1.0)]).T
    off = np.linalg.norm(((again - way) @ corners)[:, :2], axis=1).mean()
    assert off < 1.0
