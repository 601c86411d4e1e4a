"""Tracks: the tracker finds known motion at both sizes; the scores see the defects they are made for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from fym import tracks as T


def texture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth random colour image (H,W,3) float in [0,255]."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), max(2.0, height / 40))
    return (127 + 60 * smooth / smooth.std()).clip(0, 255)


def shifting(frames: int, size: tuple[int, int], dx: float, dy: float) -> np.ndarray:
    """A textured image moving by (dx, dy) pixels a frame: (F,H,W,3) uint8."""
    image = texture(*size)
    moved = [
        cv2.warpAffine(
            image,
            np.array([[1, 0, dx * t], [0, 1, dy * t]], np.float64),
            size[::-1],
            borderMode=cv2.BORDER_WRAP,
        )
        for t in range(frames)
    ]
    return np.stack(moved).round().astype(np.uint8)


def zooming(frames: int, size: int, rate: float) -> np.ndarray:
    """A textured image growing about its centre by the factor `rate` a frame."""
    image, c = texture(size, size), (size - 1) / 2
    zoomed = [
        cv2.warpAffine(
            image,
            np.array([[s, 0, c - s * c], [0, s, c - s * c]]),
            (size, size),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        for s in (rate**t for t in range(frames))
    ]
    return np.stack(zoomed).round().astype(np.uint8)


def disc(
    path: np.ndarray, *, size: int = 48, radius: float = 7, colour=(220, 40, 40), ground=(30, 60, 200)
) -> np.ndarray:
    """A disc whose centre follows `path` (F,2) pixels, anti-aliased: (F,size,size,3) uint8."""
    frames = []
    for x, y in path:
        large = np.full((size * 8, size * 8, 3), ground, np.uint8)
        cv2.circle(large, (int((x + 0.5) * 8), int((y + 0.5) * 8)), int(radius * 8), colour, -1)
        frames.append(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


@pytest.mark.parametrize(
    ("size", "dx", "dy"), [((48, 48), 0.4, -0.25), ((48, 64), -0.8, 0.0), ((480, 832), 3.0, 2.0)]
)
def test_a_known_shift_is_found(size, dx, dy):
    """Every visible point moves by the true shift: sub-pixel at 48 pixels, whole pixels at 480p."""
    clip = shifting(8, size, dx, dy)
    found = T.track(torch.from_numpy(clip), grid=8, starts=2)
    step = np.diff(found.points, axis=1)
    seen = found.visible[:, 1:] & found.visible[:, :-1]
    assert found.points.dtype == np.float32 and found.points.shape[1:] == (8, 2)
    assert found.visible.shape == found.points.shape[:2] and seen.mean() > 0.7
    error = np.linalg.norm(step - np.array([dx, dy]), axis=-1)[seen]
    assert np.median(error) < 0.1 and np.quantile(error, 0.9) < 0.25


def test_tracks_start_on_the_grid_in_their_start_frame():
    """The grid is centred, has the asked spacing, and each track is visible where it starts."""
    found = T.track(shifting(9, (48, 96), 0, 0), grid=6, starts=3)
    assert sorted(set(found.starts)) == [0, 3, 5] and len(found.points) == 3 * 6 * 12
    row = np.arange(len(found.points))
    assert found.visible[row, found.starts].all()
    first = found.points[found.starts == 0, 0]
    assert np.allclose(first.min(0), 3.5, atol=1e-4) and np.allclose(first.max(0), [91.5, 43.5], atol=1e-4)


def test_a_disc_of_equal_grey_is_tracked_by_its_colour():
    """Colour alone carries the motion: in grey this disc would be invisible."""
    path = np.stack([np.linspace(12, 36, 17), np.full(17, 24.0)], axis=1)
    clip = disc(path, colour=(255, 0, 0), ground=(0, 130, 0))
    assert np.ptp(cv2.cvtColor(clip[0], cv2.COLOR_RGB2GRAY)) < 6
    found = T.track(clip)
    step, seen = found.displacements()
    fast = seen & (np.linalg.norm(step, axis=-1) > 3)
    assert fast.sum() > 50
    assert np.allclose(np.median(step[fast], axis=0), [6, 0], atol=0.5)


def test_flat_ground_is_still_and_visible():
    """Without texture a point stays where it is instead of being lost or wandering."""
    found = T.track(np.full((6, 48, 48, 3), 90, np.uint8))
    assert found.visible.all() and not found.moving().any()
    assert np.ptp(found.points, axis=1).max() == 0


def test_a_cut_loses_every_point():
    """Two unrelated images in a row: nothing is followed across."""
    clip = np.concatenate(
        [shifting(4, (48, 48), 0, 0), np.repeat(texture(48, 48, seed=9)[None], 4, 0).astype(np.uint8)]
    )
    found = T.track(clip, starts=1)
    assert found.visible[:, :4].mean() > 0.95 and found.visible[:, 4:].mean() < 0.05


def test_direction_sees_reversal_zoom_and_a_frozen_frame():
    """1 for the clip itself, about -1 for a pan or zoom run backwards, 0 for the frozen first frame."""
    pan, zoom = shifting(13, (48, 48), 0.6, 0.0), zooming(13, 48, 1.02)
    for clip in (pan, zoom):
        ref = T.track(clip)
        assert T.direction(ref, ref) == pytest.approx(1.0, abs=1e-5)
        assert T.direction(ref, T.track(np.repeat(clip[:1], 13, axis=0))) == 0
        assert T.direction(ref, T.track(clip[::-1])) < -0.9
    assert abs(T.direction(T.track(pan), T.track(shifting(13, (48, 48), 0.0, 0.6)))) < 0.1


def test_direction_does_not_depend_on_looks():
    """The same path by a disc of other colours scores high, another path near 0."""
    turn = np.linspace(0, 2 * np.pi, 33)
    path = np.stack([23.5 + 14 * np.sin(turn), 23.5 + 10 * np.sin(2 * turn)], axis=1)
    line = np.stack([np.linspace(12, 36, 33), np.full(33, 24.0)], axis=1)
    ref = T.track(disc(path))
    assert T.direction(ref, T.track(disc(path, colour=(240, 220, 40), ground=(20, 90, 40)))) > 0.7
    assert abs(T.direction(ref, T.track(disc(line)))) < 0.3


def test_speed_ratio_is_the_ratio_of_speeds():
    """Twice as fast scores 2, frozen 0, also when the other clip has another size."""
    slow, fast = T.track(shifting(13, (48, 48), 0.4, 0.0)), T.track(shifting(13, (48, 48), 0.8, 0.0))
    assert T.speed_ratio(slow, fast) == pytest.approx(2, rel=0.1)
    assert T.speed_ratio(slow, slow) == 1
    assert T.speed_ratio(slow, T.track(shifting(13, (48, 48), 0, 0))) == 0
    large = T.track(shifting(13, (96, 96), 0.8, 0.0))
    assert T.speed_ratio(slow, large) == pytest.approx(1, rel=0.15)


def test_nothing_moving_in_the_reference_is_not_a_number():
    """A score without a reference motion is refused as nan, not printed as 0 or 1."""
    still = T.track(shifting(6, (48, 48), 0, 0))
    assert np.isnan(T.direction(still, still)) and np.isnan(T.speed_ratio(still, still))


def test_what_cannot_be_tracked_gets_no_score():
    """Noise instead of a clip: nearly every point is lost, and the few that are left decide nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (13, 48, 48, 3)).astype(np.uint8)
    assert np.isnan(T.direction(T.track(shifting(13, (48, 48), 0.6, 0.0)), T.track(noise)))


def test_drawing_scales_and_touches_only_the_tracks():
    """The drawn clip is the nearest-neighbour enlargement with coloured tracks near the moving disc only."""
    path = np.stack([np.linspace(14, 30, 9), np.full(9, 20.0)], axis=1)
    clip = disc(path)
    drawn = T.draw_tracks(clip, T.track(clip), scale=4)
    plain = np.repeat(np.repeat(clip, 4, axis=1), 4, axis=2)
    assert drawn.shape == (9, 192, 192, 3) and drawn.dtype == torch.uint8
    changed = (drawn.numpy() != plain).any(-1)
    assert changed[-1].sum() > 200 and not changed[:, 150:].any()
    assert changed[-1].sum() > changed[1].sum()  # tails grow


def test_drawing_a_clip_without_motion_changes_nothing():
    """No moving track: the clip comes back as it is."""
    clip = np.full((5, 48, 48, 3), 90, np.uint8)
    assert (T.draw_tracks(clip, T.track(clip), scale=2).numpy() == 90).all()


def test_what_is_not_a_clip_is_refused():
    """A single frame and floats raise ValueError before any work."""
    with pytest.raises(ValueError, match="F >= 2"):
        T.track(np.zeros((1, 48, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        T.track(np.zeros((4, 48, 48, 3), np.float32))
    coarse, fine = (T.track(np.zeros((4, 48, 48, 3), np.uint8), grid=grid) for grid in (4, 5))
    with pytest.raises(ValueError, match="different grids"):
        T.direction(coarse, fine)
