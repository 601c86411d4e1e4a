"""Cut the world's photo patches and motion capture out of their sources (done once; the results are kept).

    python -m fym.embedded.scenes.make_assets --clips FOLDER --motions FOLDER

`--clips` holds the clips named in LICENCES.md, `--motions` the humanoid3d_*.txt files of pybullet_data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageFilter

from fym.embedded.scenes.backgrounds import PATCH_SIZE, PHOTO_ATLAS, PHOTOS
from fym.embedded.scenes.figure import JOINTS, MOTION_CAPTURE
from fym.embedded.scenes.motions import FPS

# name of the patch -> clip, frame, left, top and side of the square, in pixels of the 640 x 360 clip
CUTS: dict[str, tuple[str, int, int, int, int]] = {
    "forest 0": ("cam_truck_forest", 0, 60, 0, 360),
    "forest 1": ("obj_apple_bounce", 0, 0, 0, 330),
    "forest 2": ("char_rope_skip", 0, 280, 0, 360),
    "meadow 0": ("cam_pan_tree", 0, 0, 20, 340),
    "meadow 1": ("cam_pan_tree", 80, 280, 0, 360),
    "meadow 2": ("multi_bunny_butterfly", 0, 0, 0, 360),
    "cloudy 0": ("cam_tilt_meadow", 0, 40, 0, 300),
    "cloudy 1": ("cam_tilt_meadow", 40, 0, 0, 290),
    "city 0": ("cam_city_hyperlapse", 0, 0, 0, 360),
    "city 1": ("cam_city_hyperlapse", 80, 250, 0, 360),
    "street 0": ("human_flip_and_walk", 0, 0, 0, 360),
    "street 1": ("human_flip_and_walk", 80, 220, 0, 360),
}

# joint -> parent, offset from it in metres (x forward, y up, z right), as in pybullet_data's humanoid
# without its scale of 4; the last entries of the chain (head, hands, feet) are its collision bodies.
SKELETON: dict[str, tuple[str, tuple[float, float, float]]] = {
    "root": ("", (0, 0, 0)),
    "chest": ("root", (0, 0.236151, 0)),
    "neck": ("chest", (0, 0.223894, 0)),
    "head": ("neck", (0, 0.175, 0)),
    "right_hip": ("root", (0, 0, 0.084887)),
    "right_knee": ("right_hip", (0, -0.421546, 0)),
    "right_ankle": ("right_knee", (0, -0.409870, 0)),
    "right_shoulder": ("chest", (-0.02405, 0.2435, 0.18311)),
    "right_elbow": ("right_shoulder", (0, -0.274788, 0)),
    "right_wrist": ("right_elbow", (0, -0.258947, 0)),
    "left_hip": ("root", (0, 0, -0.084887)),
    "left_knee": ("left_hip", (0, -0.421546, 0)),
    "left_ankle": ("left_knee", (0, -0.409870, 0)),
    "left_shoulder": ("chest", (-0.02405, 0.2435, -0.18311)),
    "left_elbow": ("left_shoulder", (0, -0.274788, 0)),
    "left_wrist": ("left_elbow", (0, -0.258947, 0)),
}
# In the order of the files: width 4 is a quaternion (w, x, y, z), width 1 an angle about z.
ROTATIONS = (
    ("chest", 4),
    ("neck", 4),
    ("right_hip", 4),
    ("right_knee", 1),
    ("right_ankle", 4),
    ("right_shoulder", 4),
    ("right_elbow", 1),
    ("left_hip", 4),
    ("left_knee", 1),
    ("left_ankle", 4),
    ("left_shoulder", 4),
    ("left_elbow", 1),
)


def rotation(values: np.ndarray) -> np.ndarray:
    """(1,) angle about z or (4,) quaternion -> (3, 3)."""
    if len(values) == 1:
        c, s = math.cos(values[0]), math.sin(values[0])
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    w, x, y, z = values / np.linalg.norm(values)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def joint_positions(frame: np.ndarray) -> np.ndarray:
    """One frame of a file (44 numbers) -> (16, 3) metres, by forward kinematics."""
    local = {"root": rotation(frame[4:8])}
    at = 8
    for joint, width in ROTATIONS:
        local[joint] = rotation(frame[at : at + width])
        at += width
    turn: dict[str, np.ndarray] = {}
    place: dict[str, np.ndarray] = {}
    for joint, (parent, offset) in SKELETON.items():
        if not parent:
            place[joint], turn[joint] = frame[1:4], local[joint]
            continue
        place[joint] = place[parent] + turn[parent] @ np.array(offset)
        turn[joint] = turn[parent] @ local.get(joint, np.eye(3))
    return np.stack([place[joint] for joint in JOINTS])


def motion_capture(path: Path) -> np.ndarray:
    """(F, 16, 3) millimetres as int16, resampled to the frame rate of the world."""
    frames = np.array(json.loads(path.read_text())["Frames"])
    joints = np.stack([joint_positions(f) for f in frames])
    times = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    wanted = np.arange(0, times[-1] + 1e-6, 1 / FPS)
    flat = joints.reshape(len(joints), -1)
    resampled = np.stack([np.interp(wanted, times, column) for column in flat.T], 1)
    return np.round(1000 * resampled.reshape(len(wanted), *joints.shape[1:])).astype(np.int16)


def photo(folder: Path, name: str) -> np.ndarray:
    clip, index, left, top, side = CUTS[name]
    with av.open(str(folder / f"{clip}.mp4")) as container:
        frame = next(itertools.islice(container.decode(video=0), index, None))
    picture = Image.fromarray(frame.to_ndarray(format="rgb24")).crop((left, top, left + side, top + side))
    small = picture.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(0.8)))  # details the autoencoder cannot hold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--motions", type=Path, required=True)
    args = parser.parse_args()
    names = [f"{name} {k}" for name, count in PHOTOS.items() for k in range(count)]
    Image.fromarray(np.concatenate([photo(args.clips, n) for n in names])).save(PHOTO_ATLAS, quality=88)
    files = sorted(args.motions.glob("humanoid3d_*.txt"))
    recordings: dict[str, Any] = {f.stem.removeprefix("humanoid3d_"): motion_capture(f) for f in files}
    np.savez_compressed(MOTION_CAPTURE, **recordings)


if __name__ == "__main__":
    main()
