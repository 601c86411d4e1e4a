"""Recordings of every kind, whose frames carry their number, for the tests of clips."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from fym.errors import UserError

WHITE = 255


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that carry their number: the left half has brightness 20 + 4 * index, the right is dark."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:, : width // 2] = 20 + 4 * index
    return frames


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers read back from the left quarter."""
    left = frames[:, :, : frames.shape[2] // 4].float().mean((1, 2, 3))
    return [round((float(value) - 20) / 4) for value in left]


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec="libx264",
    pixels="yuv420p",
    times=None,
    rotation=0,
    aspect=None,
    between="3",
) -> Path:
    """A video through PyAV; `times` are the frames' moments in 1/24 s.

    between: the most B frames in a row; with them x264 does not always write the same bytes.
    """
    source = {1: "gray", 3: "rgb24", 4: "rgba"}[frames.shape[-1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if codec == "libx264":
            stream.options = {"crf": "5", "g": "12", "bf": between}
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, picture in enumerate(frames):
            frame = VideoFrame.from_ndarray(picture.squeeze() if source == "gray" else picture, format=source)
            frame.pts, frame.time_base = (times[index] if times else index), Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def message(call, *args, **kwargs) -> str:
    """The text of the UserError that a call must raise, which must hold what, why and what to do."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert caught.value.what and caught.value.why and caught.value.fix
    return str(caught.value)
