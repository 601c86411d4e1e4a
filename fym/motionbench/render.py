"""Cases written out: for each a folder with the clip, the exact motion, and what is known about both."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fym.embedded.scenes import SIZE, Scene, render_with_masks
from fym.files import new_folder, write_file
from fym.motionbench.case import Case, frames_hash
from fym.motionbench.suite import DATASET, VERSION
from fym.motionbench.truth import true_tracks
from fym.video import write_clip

CLIP, TRUTH, RECORD = "clip.mp4", "truth.npz", "case.json"


def render_cases(cases: list[Case], out: Path, *, size: int = 0) -> Iterator[tuple[Case, bool]]:
    """Write each case into its folder of `out`: (case, whether it was there already), one after the other.

    A folder is whole or not there; one that is there in the same version, size and words is kept. size: as
    for `Case.clip`, 8 or more. Raises UserError where a clip cannot be read or a file not be written.
    """
    for case in cases:
        folder = out / case.file_name
        record = {"dataset": DATASET, "version": VERSION, "size": size, **case.as_dict()}
        kept = _is_there(folder, record)
        if not kept:
            _write(case, folder, record, size)
        yield case, kept


def _is_there(folder: Path, record: dict[str, object]) -> bool:
    try:
        stored = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / CLIP).is_file() and all(stored.get(key) == value for key, value in record.items())


def _write(case: Case, folder: Path, record: dict[str, object], size: int) -> None:
    frames, fps = case.clip(size)
    facts = {"fps": fps, "shape": list(frames.shape), "sha256": frames_hash(frames)}
    with new_folder(folder) as unfinished:
        write_clip(unfinished / CLIP, frames, fps)
        if case.scene is not None:
            write_file(unfinished / TRUTH, _packed(case.scene, frames.shape[2]))
        write_file(unfinished / RECORD, json.dumps({**record, **facts}, indent=1) + "\n")


def truth(scene: Scene, size: int) -> dict[str, np.ndarray]:
    """The exact motion of a scene rendered at size x size; N objects, F frames, P points, lengths in pixels.

    centres (N, F, 2) of the objects and, of a person, joints (F, 16, 2), both with pixel edges at integers;
    masks (N, F, bytes): size * size bits, rows first (`numpy.unpackbits`), set where an object covers more
    than half of a pixel and is not hidden; camera_centre (F, 2), camera_zoom (F,), camera_roll (F,) radians;
    points (P, F, 2) with pixel centres at integers, as trackers have it, visible (P, F), starts (P,): tracks
    of a grid (see `true_tracks`).
    """
    scale, frames, view = size / SIZE, scene.frames, scene.camera
    tracks = true_tracks(scene, size=size)
    found: dict[str, np.ndarray] = {
        "centres": scene.tracks * scale,
        "masks": np.packbits(render_with_masks(scene, size=size)[1].flatten(2).numpy() > 0.5, axis=-1),
        "camera_centre": np.broadcast_to(view.centre, (frames, 2)) * scale,
        "camera_zoom": np.broadcast_to(view.zoom, frames),
        "camera_roll": np.broadcast_to(view.roll, frames),
        "points": tracks.points,
        "visible": tracks.visible,
        "starts": tracks.starts,
    }
    for thing in scene.things:
        if thing.pose is not None:
            joints = (thing.path[:, None] + thing.radius[:, None, None] * thing.pose).swapaxes(0, 1)
            found["joints"] = np.stack([view.to_frame(joint) for joint in joints], 1) * scale
    return found


def _packed(scene: Scene, size: int) -> bytes:
    buffer = io.BytesIO()
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in truth(scene, size).items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
