"""Sparse motion sampling and adaptive RoPE: which frames are trained on, and where they sit in time.

F pixel frames of the full clip, F' latent frames (4 pixel frames share one, the first stands alone).
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

COMPRESSION = 4  # pixel frames in a latent frame, in every supported model
FLOW_HEIGHT = 64  # pixels: picking needs to know how much moves, not where exactly


def latent_frames(num_frames: int) -> int:
    """F' of a clip of F pixel frames."""
    return (num_frames - 1) // COMPRESSION + 1


def whole_clips(samples: int, count: int, frames: int) -> int:
    """How many whole clips of `frames` latent frames have the tokens of `samples` of `count` picked pixel
    frames; at least 1."""
    return max(1, samples * latent_frames(count) // frames)


def sparse_frames(
    num_frames: int,
    count: int,
    *,
    picking: str = "uniform",
    frames: Tensor | None = None,
    rng: torch.Generator | None = None,
) -> Tensor:
    """(count,) int64: the picked frames, strictly increasing.

    uniform: evenly spread, first and last included. phase: a window of evenly spaced frames with room to
    shift, its start drawn from `rng`. motion: spread evenly over the motion in `frames` (F,H,W,3) uint8
    instead of over time, so that more frames fall where more changes; first and last included. groups: the
    first frame and the pixel frames of whole latent frames, one drawn from `rng` in each of F'_s - 1 equal
    parts of the clip, so that the speed within a latent frame stays true and, step by step, every part of the
    clip is seen.
    Raises ValueError if count is not 4n+1 or more than num_frames.
    """
    if count % COMPRESSION != 1 or not 1 < count <= num_frames:
        raise ValueError(f"count is {count}; allowed: 4n+1 from 5 to the clip's {num_frames} frames")
    if picking == "uniform":
        return _spread(torch.linspace(0, num_frames - 1, count, dtype=torch.float64), num_frames)
    if picking == "phase":
        stride, room = phase_window(num_frames, count)
        start = int(torch.randint(room + 1, (1,), generator=rng))
        return start + stride * torch.arange(count)
    if picking == "groups":
        edges = torch.linspace(1, latent_frames(num_frames), latent_frames(count)).ceil().long()
        spans = edges.diff()
        drawn = edges[:-1] + (torch.rand(len(spans), generator=rng) * spans).long()
        groups = (COMPRESSION * k + torch.arange(1 - COMPRESSION, 1) for k in drawn)
        return torch.cat([torch.zeros(1, dtype=torch.int64), *groups])
    if picking == "motion":
        if frames is None:
            raise ValueError('picking "motion" needs the frames')
        travelled = np.concatenate([[0.0], np.cumsum(motion_amount(frames))])
        marks = np.interp(np.linspace(0, travelled[-1], count), travelled, np.arange(num_frames))
        return _spread(torch.from_numpy(marks), num_frames)
    raise ValueError(f'picking is "{picking}"; allowed: "uniform", "phase", "motion", "groups"')


def phase_window(num_frames: int, count: int) -> tuple[int, int]:
    """(stride, largest start) of picking "phase": the widest stride that leaves the window room to shift."""
    stride = (num_frames - 1) // (count - 1)
    room = num_frames - 1 - stride * (count - 1)
    if room == 0 and stride > 1:
        stride, room = stride - 1, count - 1
    return stride, room


def time_positions(frame_index: Tensor, num_frames: int, rule: str = "stride") -> Tensor:
    """(F'_s,) float64 positions on the time axis of RoPE, in latent frames of the full clip.

    frame_index: (F_s,) picked frames. stride: latent frame k sits where the last pixel frame of its group
    lies, frame_index[4k] / 4; for a uniform stride s that is k s. ratio: k F'/F'_s. pixel: k F/F_s.
    none: k, as if the picked frames were a clip of their own.
    """
    count = len(frame_index)
    steps = torch.arange(latent_frames(count), dtype=torch.float64)
    if rule == "stride":
        return frame_index[::COMPRESSION].double() / COMPRESSION
    if rule == "ratio":
        return steps * latent_frames(num_frames) / latent_frames(count)
    if rule == "pixel":
        return steps * num_frames / count
    if rule == "none":
        return steps
    raise ValueError(f'rule is "{rule}"; allowed: "stride", "ratio", "pixel", "none"')


def motion_amount(frames: Tensor) -> np.ndarray:
    """(F-1,) how much happens between neighbouring frames: mean optical flow plus its change, in pixels of a
    clip scaled to 64 lines, plus a floor so that a still part of a clip is not skipped altogether."""
    height, width = frames.shape[1:3]
    size = (max(FLOW_HEIGHT * width // height, 16), FLOW_HEIGHT)
    gray = [
        cv2.cvtColor(cv2.resize(f.numpy(), size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for f in frames
    ]
    start = np.zeros((size[1], size[0], 2), np.float32)
    flows = [
        cv2.calcOpticalFlowFarneback(a, b, start.copy(), 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(gray)
    ]
    speed = np.array([np.linalg.norm(flow, axis=-1).mean() for flow in flows])
    change = np.array([0.0] + [np.linalg.norm(b - a, axis=-1).mean() for a, b in pairwise(flows)])
    amount = speed + change
    return amount + max(0.1 * float(amount.mean()), 1e-3)


def _spread(marks: Tensor, num_frames: int) -> Tensor:
    """`marks` rounded to frames, moved as little as needed to be strictly increasing within the clip."""
    index = marks.round().long()
    order = torch.arange(len(index))
    # i_k - k must not decrease; a running maximum pushes later ones up, the cap pushes back from the end.
    index = (index - order).cummax(0).values
    return index.clamp(max=num_frames - len(index)) + order
