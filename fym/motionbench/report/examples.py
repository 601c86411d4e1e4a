"""Clips side by side for the page: a few cases of each category, chosen by rule, as one video each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fym import tracks
from fym.errors import UserError
from fym.motionbench.case import case_file_name
from fym.motionbench.report.summary import Group
from fym.motionbench.results import file_name
from fym.video import Clip, encode_mp4, read_clip

SIDE = 144  # pixels of the short side of a clip on the page: three times that of a rendered clip
GAP = 6
CRF = "26"  # of x264: a page has a hundred clips and more, twice each
TARGET, SEED = 0, 0  # the clip that is shown of every case


@dataclass(frozen=True)
class Example:
    """`video` holds all clips in a row and below them the same with tracks; columns: (label, pixels)."""

    video: bytes
    columns: Sequence[tuple[str, int]]
    missing: Sequence[str]  # methods that have no clip


def chosen(group: Group, against: str, score: str) -> list[tuple[str, str, float]]:
    """(case, rank, value) of the best, median and worst case of a method; cases that are the same once."""
    ranked = sorted(group.values[score][against].items(), key=lambda item: (-item[1], item[0]))
    last = len(ranked) - 1
    places = {"best": 0, "median": len(ranked) // 2, "worst": last} if last > 0 else {"only": 0}
    found: dict[int, str] = {}
    for rank, place in places.items() if ranked else ():
        found.setdefault(place, rank)
    return [(ranked[place][0], rank, ranked[place][1]) for place, rank in found.items()]


def example(case: str, methods: Sequence[str], clips: Path) -> Example:
    """A case's clips, of the first prompt and seed, of those methods that have one."""
    found = {method: find_clip(clips, method, case) for method in methods}
    row = [(method, clip) for method, clip in found.items() if clip is not None]
    missing = [method for method, clip in found.items() if clip is None]
    if not row:
        return Example(b"", [], missing)
    count = min(len(clip.frames) for _, clip in row)
    tiles = [(label, *_tiles(clip.frames[:count])) for label, clip in row]
    above = _beside([plain for _, plain, _ in tiles])
    below = _beside([drawn for *_, drawn in tiles])
    between = np.full((count, GAP, above.shape[2], 3), 255, np.uint8)
    video = encode_mp4(np.concatenate([above, between, below], axis=1), row[0][1].fps, crf=CRF)
    return Example(video, [(label, plain.shape[2]) for label, plain, _ in tiles], missing)


def find_clip(clips: Path, method: str, case: str, target: int = TARGET) -> Clip | None:
    """Of a prompt: the newest that `fym motionbench run -o` made, whatever its settings; None without one."""
    pattern = f"{file_name(method)}-{'[0-9a-f]' * 10}/{case_file_name(case)}/t{target}-s{SEED}.mp4"
    found = sorted(clips.glob(pattern), key=lambda path: path.stat().st_mtime)
    try:
        return read_clip(found[-1]) if found else None
    except (OSError, UserError):
        return None


def _tiles(frames: Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A clip at its size on the page, and that with its tracks. Small ones keep square pixels."""
    side = min(frames.shape[1:3])
    if side > SIDE:
        scale = SIDE / side
        size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
        smaller = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames.numpy()]
        frames = torch.from_numpy(np.stack(smaller).astype(np.uint8))
    factor = max(1, SIDE // min(frames.shape[1:3]))
    plain = frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    drawn = tracks.draw_tracks(frames, tracks.track(frames), scale=factor)
    return plain.numpy(), drawn.numpy()


def _beside(clips: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """In a row, white between them; lower ones are filled up with white."""
    height = math.ceil(max(clip.shape[1] for clip in clips) / 2) * 2
    parts = []
    for clip in clips:
        below = ((0, 0), (0, height - clip.shape[1]), (0, GAP), (0, 0))
        parts.append(np.pad(clip, below, constant_values=255))
    return np.concatenate(parts, axis=2)[:, :, :-GAP]
