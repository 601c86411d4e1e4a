"""Trackers against true tracks; plug-ins speak their package's language and are honest when it is missing."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fym.embedded.scenes import Camera, Ground, Scene, Thing
from fym.errors import UserError
from fym.motionbench.defects import make_case
from fym.motionbench.trackers import DIS, LUCAS_KANADE, find_tracker
from fym.motionbench.truth import true_tracks
from fym.tracks import Tracks, start_points


def test_true_tracks_follow_the_camera_and_the_objects():
    """Known places: the ground under a zoom, an object that moves, grows and turns a quarter."""
    frames, size = 9, 48
    t = np.linspace(0, 1, frames)
    ground = Scene((), Ground("grey", "rough"), camera=Camera(zoom=1 + t), frames=frames)
    found = true_tracks(ground, size=size)
    first = found.points[found.starts == 0]
    assert np.allclose(first[:, -1] + 0.5 - 24, 2 * (first[:, 0] + 0.5 - 24), atol=1e-3)

    path = np.stack([16 + 12 * t, np.full(frames, 24.0)], 1)
    thing = Thing("circle", "red", path, 8 * (1 + 0.25 * t), 0.5 * np.pi * t)
    found = true_tracks(Scene((thing,), Ground("grey"), frames=frames), size=size)
    start = found.points[found.starts == 0]
    inside = np.linalg.norm(start[:, 0] + 0.5 - [16, 24], axis=-1) < 6
    x, y = (start[inside, 0] + 0.5 - [16, 24]).T
    assert inside.sum() > 8  # a clockwise quarter turn, y down: (x, y) -> (-y, x)
    assert np.allclose(start[inside, -1] + 0.5, np.stack([28 - 1.25 * y, 24 + 1.25 * x], 1), atol=1e-3)
    assert found.visible[found.starts == 0][inside].all()
    outside = np.linalg.norm(start[:, 0] + 0.5 - [16, 24], axis=-1) > 10
    assert np.ptp(start[outside], axis=1).max() == 0
    passed = outside & (np.linalg.norm(start[:, 0] + 0.5 - [28, 24], axis=-1) < 6)
    assert passed.any() and not found.visible[found.starts == 0][passed, -1].any()  # hidden at last


@pytest.mark.parametrize("tracker", [LUCAS_KANADE, DIS], ids=["lk", "dis"])
@pytest.mark.parametrize("defect", ["reversed pan", "missing object"])
def test_trackers_follow_the_truth(tracker, defect):
    """Half of the points both see are within half a pixel of 144, and most of what is there is seen."""
    footage = make_case(defect, 1).reference
    found, true = tracker.track(footage.frames), footage.tracks
    both = found.visible & true.visible
    assert np.array_equal(found.starts, true.starts) and found.points.shape == true.points.shape
    assert both.sum() > 0.7 * true.visible.sum()
    assert np.median(np.linalg.norm(found.points - true.points, axis=-1)[both]) < 0.5


def test_flow_does_not_depend_on_what_came_before():
    """A tiny clip in between leaves no trace in the tracks of a larger one."""
    frames = make_case("reversed pan", 0).reference.frames[:4]
    before = DIS.track(frames)
    DIS.track(frames[:, :16, :16])
    after = DIS.track(frames)
    assert np.array_equal(before.points, after.points) and np.array_equal(before.visible, after.visible)


@pytest.mark.parametrize("name", ["", "kalman", "lk:x", "cotracker", "tapir:"])
def test_an_unknown_tracker_is_refused(name):
    """The message lists what there is."""
    with pytest.raises(UserError, match="cotracker:CHECKPOINT"):
        find_tracker(name)


def test_a_plug_in_without_its_package_says_so(tmp_path):
    """Neither package is part of this one."""
    for name in ("cotracker", "tapir"):
        with pytest.raises(UserError, match="cannot track"):
            find_tracker(f"{name}:{tmp_path / 'weights.pt'}")


SHIFT = torch.tensor([2.0, 1.0])  # x, y pixels a frame of the stand-ins below


def module(monkeypatch, name: str, **content) -> None:
    made = ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


def check_shifted(found: Tracks, frames: torch.Tensor, shift: np.ndarray) -> None:
    place, born = start_points(tuple(frames.shape[:3]))
    expected = place[:, None] + (np.arange(len(frames)) - born[:, None])[..., None] * shift
    assert np.allclose(found.points, expected, atol=1e-3)
    assert np.array_equal(found.starts, born) and found.visible[np.arange(len(born)), born].all()


def test_cotracker_gets_its_queries_and_gives_tracks(monkeypatch, tmp_path):
    """A stand-in with CoTracker's interface: video (1,T,3,H,W), queries (1,N,3) of frame, x, y."""

    class Predictor(torch.nn.Module):
        def __init__(self, checkpoint):
            super().__init__()
            assert checkpoint.endswith("weights.pth")

        def forward(self, video, queries, backward_tracking):
            assert video.shape == (1, 5, 3, 32, 48) and video.max() > 1 and backward_tracking
            t = torch.arange(video.shape[1])[:, None] - queries[0, :, 0]
            points = queries[0, :, 1:] + t[..., None] * SHIFT
            return points[None], torch.zeros(1, *points.shape[:2])

    module(monkeypatch, "cotracker")
    module(monkeypatch, "cotracker.predictor", CoTrackerPredictor=Predictor)
    (tmp_path / "weights.pth").touch()
    frames = torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8)
    tracker = find_tracker(f"cotracker:{tmp_path / 'weights.pth'}")
    check_shifted(tracker.track(frames), frames, SHIFT.numpy())
    assert tracker.name == "CoTracker weights.pth"
    with pytest.raises(UserError, match="no such file"):
        find_tracker("cotracker:nowhere.pth")


def test_tapir_gets_its_queries_and_gives_tracks(monkeypatch, tmp_path):
    """A stand-in with TAPIR's interface: video (1,T,256,256,3) in [-1, 1], queries of frame, y, x."""

    class Tapir(torch.nn.Module):
        def __init__(self, pyramid_level):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, video, queries):
            assert video.shape == (1, 5, 256, 256, 3) and video.min() >= -1 and video.max() <= 1
            t = torch.arange(video.shape[1]) - queries[0, :, :1]
            points = queries[0, :, None, [2, 1]] + t[..., None] * SHIFT
            unsure = torch.zeros(points.shape[:2])
            return {"tracks": points[None], "occlusion": unsure[None], "expected_dist": unsure[None]}

    for name in ("tapnet", "tapnet.torch"):
        module(monkeypatch, name)
    module(monkeypatch, "tapnet.torch.tapir_model", TAPIR=Tapir)
    torch.save(Tapir(1).state_dict(), tmp_path / "tapir.pt")
    frames = torch.randint(0, 255, (5, 32, 64, 3), dtype=torch.uint8)
    found = find_tracker(f"tapir:{tmp_path / 'tapir.pt'}").track(frames)
    check_shifted(found, frames, SHIFT.numpy() * [64 / 256, 32 / 256])
    assert found.visible.mean() == pytest.approx(1 / 5)  # 1/2 x 1/2 is not more than 1/2: only the start
