"""A person drawn as rounded limbs, moved by real motion capture (pybullet_data; see LICENCES.md).

Joints are kept as 3D positions in millimetres; a view angle projects them to the picture.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOTION_CAPTURE = Path(__file__).parent / "motion_capture.npz"
JOINTS = (
    "root", "chest", "neck", "head",
    "right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow", "right_wrist",
    "left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip
HEIGHT = 1.65  # metres, of the standing figure
# bones as pairs of joints, with the half thickness as a share of the half height
_BONES = (
    ("root", "chest", 0.14), ("chest", "neck", 0.14), ("head", "head", 0.17),
    ("right_shoulder", "left_shoulder", 0.10), ("right_hip", "left_hip", 0.12),
    ("right_hip", "right_knee", 0.10), ("right_knee", "right_ankle", 0.09),
    ("left_hip", "left_knee", 0.10), ("left_knee", "left_ankle", 0.09),
    ("right_shoulder", "right_elbow", 0.08), ("right_elbow", "right_wrist", 0.075),
    ("left_shoulder", "left_elbow", 0.08), ("left_elbow", "left_wrist", 0.075),
)  # fmt: skip

# What the caption says -> the recording.
FIGURE_MOTIONS = {
    "walking": "walk",
    "running": "run",
    "jumping": "jump",
    "dancing": "dance_a",
    "swinging the arms": "dance_b",
    "crawling": "crawl",
    "kicking": "kick",
    "punching": "punch",
    "getting up": "getup_facedown",
}
UNSEEN_FIGURE_MOTIONS = {
    "cartwheel": "cartwheel",
    "backflip": "backflip",
    "tumble": "roll",
    "spin kick": "spinkick",
}
TRAVELLING = ("walk", "run", "crawl")  # loops whose path goes on in the direction the figure looks
LOOPS = (*TRAVELLING, "jump", "dance_a", "dance_b")  # their own travel is taken out


@lru_cache(maxsize=1)
def recordings() -> dict[str, np.ndarray]:
    """Joints (F, 16, 3) in metres of each recording, 16 frames a second: x forward, y up, z to the right."""
    with np.load(MOTION_CAPTURE) as stored:
        return {name: stored[name].astype(np.float64) / 1000 for name in stored.files}


def poses(
    recording: str, frames: int, *, view: float = 0.0, mirrored: bool = False, start: int = 0
) -> np.ndarray:
    """(frames, 16, 2): joints seen from the side, y down, in half heights of the figure.

    `view` turns the camera (radians; 0 sees the figure walk to the right), `mirrored` swaps left and right
    of the picture. Loops repeat in place; other recordings hold their last frame.
    """
    joints = recordings()[recording]
    if recording in LOOPS:
        steps = np.linspace(0, 1, len(joints))[:, None]
        travel = joints[0, 0] + steps * (joints[-1, 0] - joints[0, 0])
        joints = (joints - travel[:, None] * [1, 0, 1])[:-1]
    if recording in LOOPS:
        index = (start + np.arange(frames)) % len(joints)
    else:
        index = np.minimum(start + np.arange(frames), len(joints) - 1)
    picked = joints[index]
    x = math.cos(view) * picked[..., 0] + math.sin(view) * picked[..., 2]
    x = x - x[:, :1].mean()
    seen = np.stack([-x if mirrored else x, HEIGHT / 2 - picked[..., 1]], -1)
    return seen / (HEIGHT / 2)


def distance(x: Tensor, y: Tensor, pose: Tensor, r: Tensor) -> Tensor:
    """Signed distance (pixels) of the figure at x, y (F, H, W); pose (F, 16, 2), half height r."""
    out = torch.full_like(x, torch.inf)
    joint = {name: pose[:, i, :, None, None] * r[:, None] for i, name in enumerate(JOINTS)}
    for start, end, thickness in _BONES:
        (ax, ay), (bx, by) = (joint[name].unbind(1) for name in (start, end))
        dx, dy = bx - ax, by - ay
        along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).clamp(min=1e-6)).clamp(0, 1)
        out = torch.minimum(out, torch.hypot(x - ax - along * dx, y - ay - along * dy) - thickness * r)
    return out


def centre_of_area(pose: np.ndarray, *, grid: int = 96) -> np.ndarray:
    """(F, 2): centroid of the silhouette in half heights; subtracting it makes the pose's origin exact."""
    axis = (torch.arange(grid) + 0.5) / grid * 4 - 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    frames = len(pose)
    middle = torch.as_tensor(pose, dtype=torch.float32).mean(1)
    local = torch.as_tensor(pose, dtype=torch.float32) - middle[:, None]
    pixel = 4 / grid
    signed = distance(x.expand(frames, -1, -1), y.expand(frames, -1, -1), local, torch.ones(frames, 1, 1))
    cover = (0.5 - signed / pixel).clamp(0, 1)
    area = cover.sum((1, 2))
    centre = torch.stack([(cover * axis).sum((1, 2)), (cover * axis[:, None]).sum((1, 2))], 1) / area[:, None]
    return (centre + middle).double().numpy()


def carried(points: np.ndarray, born: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(N, F, 2): points (N, 2) of the silhouette in frame `born` (N,), moved with their bones.

    A point belongs to the bone in whose outline it lies deepest, and keeps its share along that bone and its
    distance beside it; points of the head turn with the neck.
    """
    index = {name: i for i, name in enumerate(JOINTS)}
    starts = pose[:, [index[a] for a, _, _ in _BONES]]  # (F, B, 2)
    along = pose[:, [index[b] for _, b, _ in _BONES]] - starts
    head = [a == b for a, b, _ in _BONES].index(True)
    along[:, head] = starts[:, head] - pose[:, index["neck"]]
    length = np.linalg.norm(along, axis=-1).clip(1e-6)
    unit = along / length[..., None]
    offset, axis = points[:, None] - starts[born], unit[born]  # (N, B, 2)
    far = (offset * axis).sum(-1)
    beside = offset[..., 1] * axis[..., 0] - offset[..., 0] * axis[..., 1]
    share = (far / length[born]).clip(0, 1)
    share[:, head] = 0.0
    past = far - share * length[born]
    bone = (np.hypot(past, beside) - [thickness for _, _, thickness in _BONES]).argmin(1)
    share, past, beside = (v[np.arange(len(points)), bone][:, None, None] for v in (share, past, beside))
    joint, unit = (v[:, bone].swapaxes(0, 1) for v in (starts, unit))  # (N, F, 2)
    reach = share * length[:, bone].T[..., None] + past
    side = np.stack([-unit[..., 1], unit[..., 0]], -1)
    return joint + reach * unit + beside * side
