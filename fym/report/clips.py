"""Clips for the page: decoded once, tracked, drawn over, and packed as data: addresses."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fym import tracks
from fym.video import encode_mp4, read_clip

SHOWN_SIDE = (
    240  # pixels of the short side up to which a clip is embedded as it is; larger ones are reduced to it
)
TINY_SIDE = 120  # below this short side a clip is enlarged in whole steps, pixels kept square


@dataclass(frozen=True)
class Measured:
    """A clip ready for the page."""

    plain: str  # data: address of the mp4
    drawn: str  # the same with tracks drawn over it
    tracks: tracks.Tracks
    frames: int
    fps: float
    height: int
    width: int

    @property
    def shown_width(self) -> int:
        """Width on the page in CSS pixels: 4 to 6 times the clip's for tiny ones."""
        if min(self.height, self.width) >= TINY_SIDE:
            return round(200 * max(1.0, min(1.7, self.width / self.height)))
        return self.width * max(2, min(6, 192 // min(self.height, self.width)))

    @property
    def tiny(self) -> bool:
        """Whether its pixels are to be shown as squares."""
        return min(self.height, self.width) < TINY_SIDE


@dataclass(frozen=True)
class _File:
    """A file known by its content, so that a clip is measured once however often its report is written."""

    digest: str
    path: Path = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> _File:
        return cls(hashlib.sha256(path.read_bytes()).hexdigest(), path)


def measure(path: Path) -> Measured:
    """Read, track and draw a clip. Raises OSError and what `read_clip` raises."""
    return _measure(_File.of(path))


@lru_cache(maxsize=64)
def _measure(file: _File) -> Measured:
    clip = read_clip(file.path)
    shown = _reduced(clip.frames)
    found = tracks.track(shown)
    scale = max(1, -(-SHOWN_SIDE // min(shown.shape[1:3])))
    drawn = encode_mp4(tracks.draw_tracks(shown, found, scale=scale).numpy(), clip.fps)
    plain = file.path.read_bytes() if shown is clip.frames else encode_mp4(shown.numpy(), clip.fps)
    count, height, width = clip.frames.shape[:3]
    return Measured(_address(plain), _address(drawn), found, count, clip.fps, height, width)


def controls(path: Path) -> dict[str, tracks.Tracks]:
    """Tracks of the two control clips made from the reference: reversed, and its first frame frozen."""
    return _controls(_File.of(path))


@lru_cache(maxsize=16)
def _controls(file: _File) -> dict[str, tracks.Tracks]:
    shown = _reduced(read_clip(file.path).frames)
    frozen = shown[:1].expand_as(shown).contiguous()
    return {
        "reference run backwards": tracks.track(shown.flip(0)),
        "frozen first frame": tracks.track(frozen),
    }


def _reduced(frames: Tensor) -> Tensor:
    height, width = frames.shape[1:3]
    factor = SHOWN_SIDE / min(height, width)
    if factor >= 1:
        return frames
    size = (round(width * factor / 2) * 2, round(height * factor / 2) * 2)
    smaller = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(smaller).astype(np.uint8))


def _address(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode("ascii")
