"""Camera and residual object motion: exact values for exactly known motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_motion import halves, pan, rolling, tracks, zoom

from fym.motionbench.metrics.camera_error import camera_error
from fym.motionbench.metrics.object_residual import object_residual


def corner(dx: float, dy: float = 0.0, *, side: float = 40.0):
    """An object in the upper left corner moves, the rest stands still."""
    return lambda p, t: p + t * np.where((p < side).all(-1, keepdims=True), (dx, dy), (0.0, 0.0))


@pytest.mark.parametrize(("move", "reverse"), [(pan(1), pan(-1)), (rolling(2), rolling(-2))])
def test_known_values_of_camera_error(move, reverse):
    """0 for itself, 1 for a camera at rest, 2 for the opposite move."""
    clip, still = tracks(move), tracks(pan(0))
    assert camera_error(clip, clip)[0] == 0
    assert camera_error(clip, still)[0] == pytest.approx(1, abs=1e-3)
    assert camera_error(clip, tracks(reverse))[0] == pytest.approx(2, rel=0.01)


def test_the_parts_of_camera_error_are_per_frame():
    """Five times the pan: 4 times the reference's way, 4 pixels a frame of shift, no roll, no zoom."""
    value, details = camera_error(tracks(pan(1)), tracks(pan(5)))
    assert value == pytest.approx(4, rel=1e-3)
    assert details["shift"] == pytest.approx(4, rel=1e-3)
    assert abs(details["rotation"]) < 0.01 and details["log_zoom"] < 1e-3
    assert camera_error(tracks(pan(0)), tracks(rolling(3)))[1]["rotation"] == pytest.approx(3, abs=0.01)


def test_jitter_of_a_camera_at_rest_is_no_camera_error():
    """Two still clips with sub-dead-zone jitter: below 1, however small the reference's motion is."""
    still = tracks(pan(0))
    rng = np.random.default_rng(0)
    first, second = (
        replace(
            still, points=still.points + rng.normal(scale=0.03, size=still.points.shape).astype(np.float32)
        )
        for _ in range(2)
    )
    assert camera_error(first, second)[0] < 1


def test_without_visible_points_the_camera_is_unknown():
    """nan, and no parts."""
    clip = tracks(pan(1))
    value, details = camera_error(clip, replace(clip, visible=np.zeros_like(clip.visible)))
    assert np.isnan(value) and details == {}


def test_known_values_of_object_residual():
    """0 for itself, 1 for an object at rest, 2 for the opposite way, also under a panning camera."""

    def under(camera, thing):
        return tracks(lambda p, t: camera(p, t) + corner(thing)(p, t) - p)

    for camera in (pan(0), pan(1)):
        clip = under(camera, 3)
        assert object_residual(clip, clip) == 0
        assert object_residual(clip, under(camera, 0)) == pytest.approx(1, abs=1e-2)
        assert object_residual(clip, under(camera, -3)) == pytest.approx(2, abs=1e-2)


def test_a_camera_alone_has_no_object_residual():
    """nan where nothing but the camera moves."""
    for move in (pan(2), zoom(0.03), pan(0)):
        assert np.isnan(object_residual(tracks(move), tracks(halves((2, 0), (-2, 0)))))


def test_object_residual_needs_the_same_grid():
    """Tracks without the same start points raise ValueError."""
    with pytest.raises(ValueError, match="different grids"):
        object_residual(tracks(pan(1)), tracks(pan(1), grid=5))
