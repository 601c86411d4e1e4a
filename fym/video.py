"""Clips in and out: exact frames through PyAV, cropped and scaled to the model's size, written atomically.

F pixel frames, H height, W width; frames are (F,H,W,3) uint8 RGB.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import torch
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from torch import Tensor

from fym.errors import UserError
from fym.files import new_folder, write_file
from fym.sources import Picture, open_source

LARGEST_BYTES = 4 << 30  # of frames held in memory
HUNDREDTH = Fraction(1, 100)  # of a second, the clock of a gif
CRF = "14"  # of x264: hardly any loss to the eye, and small clips stay small


@dataclass(frozen=True)
class Clip:
    """A clip in memory. `sha256` is that of the file (of names and bytes for a folder of pictures)."""

    frames: Tensor  # (F,H,W,3) uint8
    fps: float
    path: str
    sha256: str
    notes: tuple[str, ...] = ()  # what was done to the pictures that a user may want to know


def read_clip(
    path: str | Path, *, start: int = 0, frames: int = 0, at_most: int = 0, height: int = 0, width: int = 0
) -> Clip:
    """Frames `start` ... `start + frames - 1` of a video file, a gif or a folder of pictures.

    frames = 0 takes all there are, or the first `at_most`. height and width in pixels: the pictures are
    cropped to the centre and scaled; one of them alone keeps the proportions, neither keeps the size. Odd
    sizes, gray and 10-bit pictures, rotation marks and non-square pixels are handled; transparent parts
    become white.

    Raises UserError: no such file, not a video, damaged, a variable frame rate, fewer than two frames,
    shorter than asked, too large for memory.
    """
    path = Path(path)
    source = open_source(path)
    stop = start + (frames or at_most) if frames or at_most else None
    taken: list[Picture] = []
    notes: list[str] = []
    count, size = 0, (0, 0)
    for picture, aspect in source.pictures(stop):
        count += 1
        if count <= start:
            continue
        size = picture.shape[:2] if not taken else size
        if picture.shape[:2] != size:
            raise UserError(
                f"{path} changes its size at frame {count - 1}",
                f"{size[1]}x{size[0]} becomes {picture.shape[1]}x{picture.shape[0]}",
                "Use a part of one size, with --start and --frames",
            )
        taken.append(_fit(_flatten(picture, notes), aspect, height, width))
        if len(taken) * taken[0].nbytes > LARGEST_BYTES:
            raise UserError(
                f"{path} is too long",
                f"{len(taken)} frames fill the memory set aside for it",
                "Give --frames",
            )
    _check_length(path, count, start, frames)
    if taken[0].shape[:2] != size:
        notes.append(f"{size[1]}x{size[0]} cropped and scaled to {taken[0].shape[1]}x{taken[0].shape[0]}")
    stack = torch.from_numpy(np.stack(taken))
    return Clip(stack, source.fps(start), str(path), source.sha256(), tuple(dict.fromkeys(notes)))


def _flatten(picture: Picture, notes: list[str]) -> Picture:
    """Transparency over white, the page that most viewers show behind it."""
    if picture.shape[2] == 3:
        return picture
    colour, alpha = picture[:, :, :3], picture[:, :, 3:].astype(np.uint16)
    if alpha.min() == 255:
        return colour
    notes.append("transparent parts become white")
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _fit(picture: Picture, aspect: float, height: int, width: int) -> Picture:
    """Crop to the centre and scale to height x width; `aspect` is the width of a pixel over its height."""
    high, wide = picture.shape[:2]
    shown = wide * aspect
    height = height or (round(high * width / shown) if width else high)
    width = width or round(shown * height / high)
    if (height, width) == (high, wide) and aspect == 1:
        return picture
    scale = max(height / high, width / shown)
    crop_high = min(high, max(1, round(height / scale)))
    crop_wide = min(wide, max(1, round(width / scale / aspect)))
    top, left = (high - crop_high) // 2, (wide - crop_wide) // 2
    part = picture[top : top + crop_high, left : left + crop_wide]
    # Area averaging keeps small things from flickering when shrinking; it makes blocks when enlarging.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(part, (width, height), interpolation=how).astype(np.uint8, copy=False)


def _check_length(path: Path, count: int, start: int, frames: int) -> None:
    if count < 2:
        raise UserError(
            f"{path} holds {'one frame' if count else 'no frame'}",
            "a motion needs several frames",
            "Give a video",
        )
    left = max(0, count - start)
    if left < 2 or left < frames:
        asked = f"{frames} frames from frame {start} on are asked for" if frames else f"--start is {start}"
        raise UserError(
            f"{path} is too short",
            f"it has {count} frames and {asked}",
            "Lower --frames or --start, or use a longer clip",
        )


def write_clip(path: str | Path, frames: Tensor, fps: float) -> None:
    """Writes (F,H,W,3) uint8 frames as .mp4 (h264), .gif, or png files in a folder (a name without a suffix).

    Nothing stands at `path` until the clip is complete. An mp4 of odd height or width repeats its last row or
    column once, because players need even sizes. A folder is replaced only if it holds such png files alone.
    Raises UserError for another suffix and where nothing can be written, ValueError for other frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or len(frames) == 0:
        raise ValueError(f"frames: must be (F,H,W,3) uint8, F >= 1, got {tuple(frames.shape)} {frames.dtype}")
    target = output_kind(path)
    pictures = frames.contiguous().cpu().numpy()
    path = Path(path)
    if target == "mp4":
        write_file(path, encode_mp4(pictures, fps))
    elif target == "gif":
        write_file(path, encode_gif(pictures, fps))
    else:
        with new_folder(path) as folder:
            for index, picture in enumerate(pictures):
                _, png = cv2.imencode(".png", picture[:, :, ::-1])
                (folder / f"{index:05d}.png").write_bytes(png.tobytes())


def output_kind(path: str | Path) -> str:
    """ "mp4", "gif" or "png" (a folder), from the name alone; UserError for a name that cannot be written."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".mp4", ".gif"):
        if path.is_dir():
            raise UserError(f"{path} cannot be written", "it is a folder", "Choose another name with -o")
        return suffix[1:]
    if suffix:
        raise UserError(
            f"{path} cannot be written", f"clips are not written as {suffix}", "Use .mp4, .gif or a folder"
        )
    if path.exists() and not (
        path.is_dir() and all(re.fullmatch(r"\d{5}\.png", f.name) for f in path.iterdir())
    ):
        raise UserError(f"{path} cannot be written", "it holds other files", "Choose a new folder with -o")
    return "png"


def encode_mp4(pictures: Picture, fps: float, *, crf: str = CRF) -> bytes:
    """(F,H,W,3) uint8 as an h264 mp4 that plays everywhere (yuv420p, even size); crf: x264's loss."""
    pad = [(0, 0), (0, pictures.shape[1] % 2), (0, pictures.shape[2] % 2), (0, 0)]
    pictures = np.pad(pictures, pad, mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # No B frames: x264's AVX-512 path for them reads uninitialised memory, so files would differ.
        stream = container.add_stream("libx264", rate=_rate(fps), options={"crf": crf, "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_gif(pictures: Picture, fps: float) -> bytes:
    """(F,H,W,3) uint8 as a gif that repeats for ever, with one palette made for the whole clip."""
    graph = av.filter.Graph()
    height, width = pictures.shape[1:3]
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=HUNDREDTH)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=_rate(fps))
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        stream.codec_context.time_base = HUNDREDTH
        for index, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            # gif counts hundredths of a second: rounding each time, not each duration, keeps the speed.
            frame.pts, frame.time_base = round(100 * index / fps), HUNDREDTH
            source.push(frame)
        source.push(None)
        for _ in pictures:
            container.mux(stream.encode(cast(VideoFrame, sink.pull())))
        container.mux(stream.encode())
    return buffer.getvalue()


def _rate(fps: float) -> Fraction:
    """29.97... as 30000/1001."""
    return Fraction(fps).limit_denominator(1001)
