"""Exact tracks of a rendered scene: what a perfect tracker would find."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fym.embedded.scenes import SIZE, Scene, Thing, figure, render_with_masks
from fym.tracks import Bools, Floats, Tracks, start_points

Numbers = npt.NDArray[np.float64]


def true_tracks(scene: Scene, *, size: int) -> Tracks:
    """Tracks of a scene rendered at size x size pixels, from the start points of `fym.tracks.track`.

    A point belongs to the foremost object at its start, or to the ground. It is lost, for good in either
    direction of time, when it is hidden or leaves the frame. A person's points stay on the bone nearest at
    their start: see `figure.carried`.
    """
    place, born = start_points((scene.frames, size, size))
    scale = size / SIZE
    begin = (place + 0.5) / scale  # frame positions in the scene's unit
    masks = render_with_masks(scene, size=size)[1].numpy()  # (things, F, size, size)
    owner = _owner(masks, place, born)
    paths = np.empty((len(born), scene.frames, 2))
    for n in np.unique(owner):
        rows = owner == n
        thing = scene.things[n] if n >= 0 else None
        paths[rows] = _carried(scene, thing, begin[rows], born[rows])
    points = (paths * scale - 0.5).astype(np.float32)
    return Tracks(points, _visible(masks, points, owner, born), born, (size, size))


def _owner(masks: Floats, place: Floats, born: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(N,) index of the thing seen at each start, -1 for the ground."""
    if not len(masks):
        return np.full(len(born), -1)
    x, y = np.rint(place).astype(int).T
    share = masks[:, born, y, x]
    return np.where(share.max(axis=0) > 0.5, share.argmax(axis=0), -1)


def _carried(scene: Scene, thing: Thing | None, begin: Floats, born: npt.NDArray[np.int64]) -> Numbers:
    """(N, F, 2) frame positions of points that start at `begin` in frame `born` and go with the thing."""
    frames, view = scene.frames, scene.camera
    centre, zoom = _every(view.centre, frames), _every(view.zoom, frames)
    roll = _every(view.roll, frames)
    world = _turned((begin - SIZE / 2) / zoom[born, None], roll[born]) + centre[born]
    if thing is None:
        world_path = np.repeat(world[:, None], frames, axis=1)
    else:
        path, radius = _every(thing.path, frames), _every(thing.radius, frames)
        angle = _every(thing.angle, frames)
        own = _turned((world - path[born]) / radius[born, None], -angle[born])
        kept = own[:, None] if thing.pose is None else figure.carried(own, born, thing.pose)
        world_path = radius[:, None] * _turned(kept, angle) + path
    return zoom[:, None] * _turned(world_path - centre, -roll) + SIZE / 2


def _every(values: Numbers, frames: int) -> Numbers:
    return np.broadcast_to(values, (frames, *values.shape[1:]))


def _turned(points: Numbers, angle: Numbers) -> Numbers:
    """Points (..., 2) turned clockwise on the screen (y down) by an angle (...,)."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], axis=-1)


def _visible(
    masks: Floats, points: Floats, owner: npt.NDArray[np.int64], born: npt.NDArray[np.int64]
) -> Bools:
    frames, size = points.shape[1], masks.shape[-1] if len(masks) else 0
    limit = size or int(points.max()) + 1
    inside = ((points >= -0.5) & (points <= limit - 0.5)).all(axis=-1)
    shown = inside
    if len(masks):
        x, y = np.rint(points.clip(0, size - 1)).astype(int).transpose(2, 0, 1)
        share = masks[:, np.arange(frames), y, x]  # (things, N, F)
        own = np.where(owner[:, None] >= 0, np.take_along_axis(share, owner[None, :, None].clip(0), 0)[0], 0)
        shown = inside & np.where(owner[:, None] >= 0, own > 0.5, share.sum(axis=0) < 0.5)
    t = np.arange(frames)
    after, before = t >= born[:, None], t <= born[:, None]
    forward = np.logical_and.accumulate(shown | ~after | (t == born[:, None]), axis=1)
    backward = np.logical_and.accumulate((shown | ~before | (t == born[:, None]))[:, ::-1], axis=1)[:, ::-1]
    return (after & forward) | (before & backward)
