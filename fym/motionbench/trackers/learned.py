"""CoTracker and TAPIR as plug-ins: neither code nor weights are part of this package.

Each needs its own Python package and a local checkpoint; nothing is downloaded. CoTracker's weights are for
non-commercial use (CC-BY-NC); TAPIR's are open (Apache-2.0).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from fym.errors import UserError
from fym.motionbench.trackers.base import Tracker
from fym.tracks import Tracks, start_points

TAPIR_SIDE = 256  # pixels of the square that TAPIR works on


def cotracker(checkpoint: str | Path) -> Tracker:
    """CoTracker (Karaev et al., 2023) with a local checkpoint. Raises UserError if it cannot be loaded."""
    predictor = _package("cotracker.predictor", "CoTracker").CoTrackerPredictor
    model = predictor(checkpoint=str(_file(checkpoint))).eval()

    @torch.inference_mode()
    def track(frames: Tensor) -> Tracks:
        place, born = start_points(tuple(frames.shape[:3]))
        queries = torch.from_numpy(np.concatenate([born[:, None], place], axis=1)).float()
        video = frames.permute(0, 3, 1, 2).float()
        points, visible = model(video[None], queries=queries[None], backward_tracking=True)
        found = points[0].transpose(0, 1).float().cpu().numpy()
        return _tracks(found, visible[0].T.cpu().numpy() > 0.5, born, frames)

    return Tracker(f"CoTracker {Path(checkpoint).name}", track)


def tapir(checkpoint: str | Path) -> Tracker:
    """TAPIR (Doersch et al., 2023), the PyTorch model, with a local checkpoint; frames are scaled to
    256 x 256 pixels. Raises UserError if it cannot be loaded.
    """
    model = _package("tapnet.torch.tapir_model", "TAPIR").TAPIR(pyramid_level=1)
    model.load_state_dict(torch.load(_file(checkpoint), map_location="cpu", weights_only=True))
    model.eval()

    @torch.inference_mode()
    def track(frames: Tensor) -> Tracks:
        place, born = start_points(tuple(frames.shape[:3]))
        size = (TAPIR_SIDE, TAPIR_SIDE)
        small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames.numpy()])
        video = torch.from_numpy(small).float() / 127.5 - 1
        scale = TAPIR_SIDE / np.array([frames.shape[2], frames.shape[1]])
        begin = (place + 0.5) * scale  # TAPIR counts from the picture's corner
        queries = torch.from_numpy(np.concatenate([born[:, None], begin[:, ::-1]], axis=1)).float()
        found: Any = model(video[None], queries[None])
        seen = torch.sigmoid(-found["occlusion"][0]) * torch.sigmoid(-found["expected_dist"][0]) > 0.5
        points = found["tracks"][0].float().cpu().numpy() / scale - 0.5
        return _tracks(points, seen.cpu().numpy(), born, frames)

    return Tracker(f"TAPIR {Path(checkpoint).name}", track)


def _package(module: str, name: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        fix = f"Install {name}'s package, or use the default tracker"
        raise UserError(f"{name} cannot track", f"the module {module} is not there ({error})", fix) from error


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path} is no checkpoint", "there is no such file", "Give a local file")
    return Path(path)


def _tracks(points: Any, visible: Any, born: Any, frames: Tensor) -> Tracks:
    """The start itself is given, so it is exact and visible."""
    rows = np.arange(len(born))
    visible = np.array(visible, bool)
    visible[rows, born] = True
    points = np.array(points, np.float32)
    points[rows, born] = start_points(tuple(frames.shape[:3]))[0]
    return Tracks(points, visible, born, (frames.shape[1], frames.shape[2]))
