"""Clips in and out: exact frames through PyAV, cropped and scaled to the model's size, written atomically.

F pixel frames, H height, W width; frames are (F,H,W,3) uint8 RGB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
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
from fym.sources import RATE_TOLERANCE, SD_HEIGHT, SD_WIDTH, Decoded, Picture, Shot, open_source
from fym.tracks import Tracks, track

LARGEST_BYTES = 4 << 30  # of frames held in memory
LONGEST_PAUSE = 10  # seconds between two frames
HUNDREDTH = Fraction(1, 100)  # of a second, the clock of a gif
BT601 = 6  # H.273's number of the matrix that ffmpeg makes YUV with
CRF = "14"  # of x264: hardly any loss to the eye, and small clips stay small


@dataclass(frozen=True)
class Clip:
    """A clip in memory. `sha256` is that of the file (of names and bytes for a folder of pictures)."""

    frames: Tensor  # (F,H,W,3) uint8
    fps: float
    path: str
    sha256: str
    notes: tuple[str, ...] = ()  # what was done to the pictures that a user may want to know

    @cached_property
    def tracks(self) -> Tracks:
        return track(self.frames)


def read_clip(
    path: str | Path,
    *,
    start: int = 0,
    frames: int = 0,
    at_most: int = 0,
    height: int = 0,
    width: int = 0,
    fps: float = 0,
    crop: tuple[int, int, int, int] | None = None,
) -> Clip:
    """`frames` frames of a video file, a gif or a folder of pictures, from the recorded frame `start` on.

    frames = 0 takes all there are, or the first `at_most`. fps: so many frames a second, each what is seen at
    its time, so that the motion keeps its speed; 0 = as recorded, made constant where that varies. A folder
    of pictures has no times: there fps only says how fast they are.

    crop: x, y, width and height in pixels of the upright picture. height and width in pixels: what is left is
    cropped to the centre and scaled; one of them alone keeps the proportions, neither keeps the size. Odd
    sizes, gray and 10-bit pictures, HDR, rotation marks and non-square pixels are handled; transparent parts
    become white. Only the frames that are returned are kept in memory, and none after them is decoded.

    Raises UserError: no such file, not a video, damaged, a pause, fewer than two frames, shorter than asked,
    a crop that is not inside, too large for memory.
    """
    path = Path(path)
    source = open_source(path)
    recorded = 0

    def from_start() -> Iterator[Shot]:
        nonlocal recorded
        for shot in source.shots():
            recorded += 1
            if recorded > start:
                yield shot

    pixels = bytearray()  # a list of many small arrays would leave gaps in memory as large as the decoder's
    taken, notes = 0, list[str]()
    size, shape = (0, 0), (0, 0, 0)
    for shot in _at_rate(from_start(), fps, path) if fps and source.timed else from_start():
        picture = shot.picture
        size = size if taken else picture.shape[:2]
        if picture.shape[:2] != size:
            raise UserError(
                f"{path} changes its size at frame {recorded - 1}",
                f"{size[1]}x{size[0]} becomes {picture.shape[1]}x{picture.shape[0]}",
                "Use a part of one size, with --start and --frames",
            )
        part = _fit(_flatten(_cut(picture, crop, path), notes), shot.aspect, height, width)
        if shot.wide:  # now that it is small
            notes.append(shot.wide.note)
            part = shot.wide.to_sdr(part)
        pixels += np.ascontiguousarray(part).data
        taken, shape = taken + 1, part.shape
        if len(pixels) > LARGEST_BYTES:
            raise UserError(
                f"{path} is too long", f"{taken} frames fill the memory set aside for it", "Give --frames"
            )
        if taken == (frames or at_most):
            break
    rate, varying = source.fps(start)
    if varying and not fps:
        return read_clip(
            path,
            start=start,
            frames=frames,
            at_most=at_most,
            height=height,
            width=width,
            fps=rate,
            crop=crop,
        )
    _check_length(path, recorded, start, frames, taken, fps)
    if fps and source.timed and (varying or abs(rate - fps) > 0.01 * fps):
        notes.append(f"{varying or f'{rate:.4g}'} fps become {fps:g}, in the clip's own time")
    size = (crop[3], crop[2]) if crop else size
    if shape[:2] != size:
        notes.append(f"{size[1]}x{size[0]} cropped and scaled to {shape[1]}x{shape[0]}")
    stack = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(taken, *shape))
    return Clip(stack, fps or rate, str(path), source.sha256(), tuple(dict.fromkeys(notes)))


def _at_rate(shots: Iterator[Shot], fps: float, path: Path) -> Iterator[Shot]:
    """What is seen 0, 1 / fps, 2 / fps, ... seconds after the first picture: the last one shown by then.

    Clocks are rounded, so one that comes up to RATE_TOLERANCE / fps later counts.
    """
    count, first, seen = 0, 0.0, None
    for shot in shots:
        if seen is None:
            first = shot.time
        elif shot.time - seen.time > LONGEST_PAUSE:
            raise UserError(
                f"{path} stands still for {shot.time - seen.time:.3g} seconds",
                f"from {seen.time:.3g} s on it shows one picture, and that is no motion",
                "Use the part before or after it, with --start and --frames",
            )
        while seen is not None and first + (count + RATE_TOLERANCE) / fps < shot.time:
            yield seen
            count += 1
        seen = shot
    while seen is not None and first + (count - RATE_TOLERANCE) / fps <= seen.time:
        yield seen
        count += 1


def _cut(picture: Decoded, crop: tuple[int, int, int, int] | None, path: Path) -> Decoded:
    if crop is None:
        return picture
    left, top, width, height = crop
    if left + width > picture.shape[1] or top + height > picture.shape[0]:
        raise UserError(
            f"The crop {left}:{top}:{width}:{height} is not inside {path}",
            f"its pictures are {picture.shape[1]} wide and {picture.shape[0]} high",
            "Give X:Y:WIDTH:HEIGHT in pixels from the top left of the upright picture",
        )
    return picture[top : top + height, left : left + width]


def _flatten(picture: Decoded, notes: list[str]) -> Decoded:
    """Transparency over white, the page that most viewers show behind it."""
    if picture.shape[2] == 3:
        return picture
    colour, alpha = picture[:, :, :3], picture[:, :, 3:].astype(np.uint16)
    if alpha.min() == 255:
        return colour
    notes.append("transparent parts become white")
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _fit(picture: Decoded, aspect: float, height: int, width: int) -> Decoded:
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
    return cv2.resize(part, (width, height), interpolation=how)


def _check_length(path: Path, count: int, start: int, frames: int, taken: int, fps: float) -> None:
    if count < 2:
        raise UserError(
            f"{path} holds {'one frame' if count else 'no frame'}",
            "a motion needs several frames",
            "Give a video",
        )
    if taken < 2 or taken < frames:
        asked = f"{frames} frames from frame {start} on are asked for" if frames else f"--start is {start}"
        has = f"{taken} at {fps:g} fps from there on" if fps else f"{count} frames"
        raise UserError(
            f"{path} is too short",
            f"it has {has} and {asked}",
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
        # Neither B frames nor macroblock trees: x264's AVX-512 paths for them read uninitialised memory, so
        # that of the same pictures one file in some 40 would differ.
        options = {"crf": crf, "bf": "0", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=_rate(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], "yuv420p"
        if stream.height > SD_HEIGHT or stream.width > SD_WIDTH:  # without a name players take BT.709's there
            stream.codec_context.colorspace = BT601
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
