"""A tracker that chains dense DIS flow: it needs no weights and no corners, but sees only brightness."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from torch import Tensor

from fym.motionbench.flow import FLOW, dense_flow, grey
from fym.motionbench.trackers.base import Tracker
from fym.tracks import FORWARD_BACKWARD_LIMIT, Bools, Floats, Tracks, start_points


def track(frames: Tensor) -> Tracks:
    """Follow the start points of `fym.tracks.track` along the flow, both ways in time.

    A point is lost where it leaves the frame or where the flow back does not return to it within
    `FORWARD_BACKWARD_LIMIT` pixels.
    """
    shades = [grey(frame) for frame in frames.numpy()]
    ahead = [dense_flow(now, then) for now, then in pairwise(shades)]
    back = [dense_flow(then, now) for now, then in pairwise(shades)]
    first, born = start_points(tuple(frames.shape[:3]))
    place = np.repeat(first[:, None], len(frames), axis=1).astype(np.float32)
    alive = born[:, None] == np.arange(len(frames))
    count = len(frames)
    for now in range(count - 1):
        _step(place, alive, born <= now, now, now + 1, ahead[now], back[now])
    for now in range(count - 1, 0, -1):
        _step(place, alive, born >= now, now, now - 1, back[now - 1], ahead[now - 1])
    return Tracks(place, alive, born, (frames.shape[1], frames.shape[2]))


def _step(
    place: Floats, alive: Bools, begun: Bools, now: int, then: int, there: Floats, back: Floats
) -> None:
    """Carry the tracks that have begun from frame `now` to its neighbour `then`."""
    place[begun, then] = place[begun, now]
    rows = np.flatnonzero(begun & alive[:, now])
    if not len(rows):
        return
    old = place[rows, now]
    new = old + _at(there, old)
    returned = new + _at(back, new)
    height, width = there.shape[:2]
    good = ((new >= -0.5) & (new <= np.array([width - 0.5, height - 0.5]))).all(axis=1)
    good &= np.linalg.norm(returned - old, axis=1) < FORWARD_BACKWARD_LIMIT
    alive[rows[good], then] = True
    place[rows[good], then] = new[good]


def _at(flow: Floats, points: Floats) -> Floats:
    """The flow (H,W,2) at points (N,2), bilinear."""
    x, y = np.ascontiguousarray(points.T)[:, None]
    return np.asarray(cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0], np.float32)


DIS = Tracker(f"{FLOW}, chained, forward-backward checked", track)
