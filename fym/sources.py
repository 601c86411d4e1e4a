"""Where pictures come from: a video file or a folder of pictures, decoded in order, damage noticed.

A picture is (H,W,3) or, with transparency, (H,W,4) uint8, upright (the file's rotation mark is applied); one
in HDR or BT.2020 colours is (H,W,3) uint16 for `fym.hdr`. Sound is never decoded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fym import hdr
from fym.errors import UserError

FOLDER_FPS = 16.0  # a folder of pictures has no frame rate: Wan's own is assumed
RATE_TOLERANCE = (
    0.25  # of a frame's duration; containers round times (33/34 ms), variable rates differ by more
)
UNSPECIFIED = 2  # H.273's number of a matrix that is not named: BT.601's, in HD BT.709's, as players take it
SD_HEIGHT, SD_WIDTH = 576, 1024  # what is larger is HD
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What ffmpeg opens and is no clip. It would show the characters of a text file as a picture, and a list may
# name any file of this machine.
NOT_VIDEO_FORMATS = {"tty": "it is a text file"} | dict.fromkeys(
    ("concat", "hls", "dash"), "it is a list of other files"
)

Picture = np.ndarray[Any, np.dtype[np.uint8]]
Decoded = np.ndarray[Any, np.dtype[Any]]  # uint8 or uint16


class Shot(NamedTuple):
    """A picture and when it is shown, in seconds."""

    picture: Decoded
    aspect: float  # width of a pixel over its height
    time: float
    wide: hdr.Wide | None = None  # the colours of a uint16 picture


class Source(Protocol):
    """Pictures in order, then facts about what was read. timed: each has its own time, else all one rate."""

    timed: bool

    def shots(self) -> Iterator[Shot]:
        """The pictures, as far as they are asked for; UserError at the first damaged one."""

    def fps(self, start: int) -> tuple[float, str]:
        """Frames a second from picture `start` on, and where that varies the range ("10 to 24"), else ""."""

    def sha256(self) -> str: ...


def open_source(path: Path) -> Source:
    if not os.path.exists(path):  # Path.exists raises where the name is too long
        raise UserError(f"{path} cannot be read", "there is no such file", "Check the path of the clip")
    return Folder(path) if path.is_dir() else VideoFile(path)


class VideoFile:
    """A file that ffmpeg can decode, read from its first frame: seeking is not exact in every container."""

    timed = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._times: list[float | None] = []
        self._rate = self._tick = 0.0
        self._packets = self._end = 0
        self._complete = False  # read to the end, so that packets and frames can be compared

    def shots(self) -> Iterator[Shot]:
        self._times, self._packets, self._complete = [], 0, False
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except PermissionError as error:
            raise UserError(
                f"{self.path} cannot be read", str(error.strerror), "Check its permissions"
            ) from None
        except (av.FFmpegError, OSError) as error:
            raise self._not_video(f"ffmpeg finds nothing it knows in it ({error.strerror})") from None
        with container:
            yield from self._decode(container, self._stream(container))

    def _stream(self, container: Any) -> VideoStream:
        if container.format.name in NOT_VIDEO_FORMATS:
            raise self._not_video(NOT_VIDEO_FORMATS[container.format.name])
        cover = av.stream.Disposition.attached_pic  # the cover picture of a piece of music
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise self._not_video("it holds no moving pictures")
        stream: VideoStream = streams[0]
        if stream.codec_context is None:
            raise self._not_video("its pictures are in a format that has no decoder here")
        stream.thread_type = "AUTO"
        # Otherwise damaged places are painted over in silence.
        stream.codec_context.options = {"err_detect": "explode"}
        self._rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._tick = float(stream.time_base or 0)
        return stream

    def _decode(self, container: Any, stream: VideoStream) -> Iterator[Shot]:
        aspect = float(stream.sample_aspect_ratio or 1)
        samples = 0
        has_times = container.format.name != "avi"  # which stores the order of decoding alone
        try:
            for packet in container.demux(stream):
                samples += packet.size > 0
                self._end = packet.pos + packet.size if packet.pos is not None else self._end
                self._packets += packet.size > 0 and not packet.is_discard
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._damaged("the decoder marks it as broken")
                    picture, turned, wide = upright(frame)
                    time = frame.time if has_times else None
                    at = len(self._times) / (self._rate or FOLDER_FPS) if time is None else time
                    self._times.append(time)
                    yield Shot(picture, 1 / aspect if turned else aspect, at, wide)
        except av.FFmpegError as error:
            raise self._damaged(str(error.strerror)) from None
        if samples < stream.frames:
            raise self._damaged(f"the file ends there, {stream.frames} frames are announced")
        self._check_end(container.format.name, stream)
        self._complete = True

    def _check_end(self, container: str, stream: VideoStream) -> None:
        """Containers that do not count their frames tell by other means that the file is cut off."""
        if container == "gif":
            with self.path.open("rb") as file:
                file.seek(max(0, self._end - 1))
                rest = file.read().rstrip(b"\0")
            if rest != b";":
                raise self._damaged("what follows there is not a gif")
        announced_bytes = announced_size(self.path)
        if announced_bytes > self.path.stat().st_size:
            raise self._damaged(f"the file ends there, {announced_bytes} bytes are announced")
        # Matroska and WebM note when each stream ends, "00:00:01.234".
        announced = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
        last = self._times[-1] if self._times else None
        if announced and last is not None and self._rate:
            hours, minutes, seconds = map(float, announced.groups())
            end = hours * 3600 + minutes * 60 + seconds
            if end - last > 2.5 / self._rate:  # the last frame lasts for one
                raise self._damaged(f"the file ends there, {end:.2f} seconds are announced")

    def fps(self, start: int) -> tuple[float, str]:
        times = [t for t in self._times[start:] if t is not None]
        if len(times) < 2:
            return self._rate or FOLDER_FPS, ""
        steps = np.diff(np.array(times))
        usual = float(np.median(steps))
        # A clock as coarse as a gif's (1/100 s) cannot help rounding by one tick.
        slack = max(RATE_TOLERANCE * usual, 1.01 * self._tick if usual > 1.99 * self._tick else 0.0)
        uneven = np.flatnonzero(np.abs(steps - usual) > slack)
        if len(uneven) and self._complete and self._packets > len(self._times):
            raise self._damaged("frames are missing there", int(uneven[0]) + start + 1)
        if len(uneven) or usual <= 0:
            low, high = (1 / max(s, 1e-3) for s in (steps.max(), steps.min()))
            return float(max(1, round(1 / usual)) if usual > 0 else 24), f"{low:.3g} to {high:.3g}"
        measured = (len(times) - 1) / (times[-1] - times[0])
        # The container's rate is exact (30000/1001) where the times are rounded.
        return (self._rate if abs(measured - self._rate) < 0.01 * measured else measured), ""

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def _not_video(self, why: str) -> UserError:
        return UserError(f"{self.path} is not a video", why, "Give an mp4, mov, webm, mkv, avi or gif file")

    def _damaged(self, why: str, frame: int | None = None) -> UserError:
        frame = len(self._times) if frame is None else frame
        return UserError(
            f"{self.path} is damaged near frame {frame}",
            why,
            "Use another copy of the file, or the part before it with --frames",
        )


class Folder:
    """Pictures in a folder, in the order of the numbers in their names."""

    timed = False

    def __init__(self, path: Path) -> None:
        self.path = path
        names = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
        self.files = sorted(
            names, key=lambda f: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", f.name)]
        )
        if not self.files:
            raise UserError(
                f"{path} is not a clip", "the folder holds no pictures", "Give a video or png frames"
            )

    def shots(self) -> Iterator[Shot]:
        for index, file in enumerate(self.files):
            try:
                with av.open(str(file)) as container:
                    picture, _, wide = upright(next(container.decode(video=0)))
                yield Shot(picture, 1.0, index / FOLDER_FPS, wide)
            except (av.FFmpegError, StopIteration, IndexError):
                raise UserError(f"{file} is damaged", "it is not a picture", "Replace or remove it") from None

    def fps(self, start: int) -> tuple[float, str]:
        return FOLDER_FPS, ""

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()


def upright(frame: VideoFrame) -> tuple[Decoded, bool, hdr.Wide | None]:
    """The picture of a frame, whether height and width changed places by turning it upright, its colours."""
    transparent = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
    large = frame.height > SD_HEIGHT or frame.width > SD_WIDTH
    if frame.colorspace == UNSPECIFIED and large and "yuv" in frame.format.name:
        frame.colorspace = hdr.BT709
    wide = hdr.Wide.of(frame.color_trc, frame.color_primaries)
    picture = frame.to_ndarray(format="rgb48le" if wide else "rgba" if transparent else "rgb24")
    quarters = round(frame.rotation / 90) % 4  # counter-clockwise, as in np.rot90
    return np.ascontiguousarray(np.rot90(picture, quarters)), quarters % 2 == 1, wide


def announced_size(path: Path) -> int:
    """The bytes that an AVI, Matroska or WebM file has by its own header; 0 where nothing is said.

    Sources: RIFF's chunk size; EBML's element sizes (RFC 8794, section 6), unknown in recordings of streams.
    """
    with path.open("rb") as file:
        start = file.read(256)
    if start[:4] == b"RIFF":
        size = int.from_bytes(start[4:8], "little")
        return 8 + size if size < 2**32 - 1 else 0
    if start[:4] != b"\x1a\x45\xdf\xa3":
        return 0
    size, end = _ebml_size(start, 4)
    segment = end + size
    if start[segment : segment + 4] != b"\x18\x53\x80\x67" or len(start) < segment + 12:
        return 0
    size, end = _ebml_size(start, segment + 4)
    return end + size if size else 0


def _ebml_size(data: bytes, place: int) -> tuple[int, int]:
    """An element's size (0 = unknown), as many bytes as its first one has leading zeros and one; its end."""
    length = 9 - data[place].bit_length()
    size = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (0 if size == (1 << 7 * length) - 1 else size), place + length
