"""Clips in and out: exact frames, sizes, and every kind of file that is no usable clip."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from av.video.frame import VideoFrame

from fym import files, sources
from fym.errors import UserError
from fym.video import encode_mp4, output_kind, read_clip, write_clip

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


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", numbered(30))


def message(call, *args, **kwargs) -> str:
    """The text of the UserError that a call must raise, which must hold what, why and what to do."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert caught.value.what and caught.value.why and caught.value.fix
    return str(caught.value)


class TestFrames:
    def test_every_frame_in_order(self, clip_file):
        clip = read_clip(clip_file)
        assert numbers(clip.frames) == list(range(30))
        assert clip.frames.dtype == torch.uint8 and clip.frames.shape == (30, 48, 64, 3)
        assert clip.fps == 24 and len(clip.sha256) == 64 and clip.notes == ()

    @pytest.mark.parametrize(("start", "count"), [(0, 5), (7, 9), (25, 5)])
    def test_exact_range(self, clip_file, start, count):
        assert numbers(read_clip(clip_file, start=start, frames=count).frames) == list(
            range(start, start + count)
        )

    def test_at_most_is_a_limit_and_not_a_demand(self, clip_file):
        assert len(read_clip(clip_file, at_most=17).frames) == 17
        assert len(read_clip(clip_file, at_most=99).frames) == 30

    def test_b_frames_come_in_display_order(self, tmp_path):
        """x264 stores frames in another order than it shows them; containers with other clocks agree."""
        for name in ("a.mkv", "a.mov", "a.avi"):
            clip = read_clip(write_video(tmp_path / name, numbered(20)))
            assert numbers(clip.frames) == list(range(20)), name
            assert clip.fps == pytest.approx(24, rel=1e-3)

    def test_hash_is_of_the_content(self, clip_file, tmp_path):
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(clip_file.read_bytes())
        assert read_clip(copy).sha256 == read_clip(clip_file).sha256


class TestRate:
    """`fps`, and clips whose own rate varies: a frame is what is seen at its time."""

    def test_variable_rate_becomes_constant(self, tmp_path):
        """A dropped frame is replaced by the one before it, so that later ones keep their time."""
        times = [0, 1, 2, 3, 4, 8, 9, 10, 11, 15, 16, 17]
        path = write_video(tmp_path / "vfr.mkv", numbered(12), times=times)
        clip = read_clip(path)
        assert numbers(clip.frames) == [max(n for n in range(12) if times[n] <= t) for t in range(18)]
        assert clip.fps == 24 and clip.notes == ("5.99 to 24.4 fps become 24, in the clip's own time",)
        part = read_clip(path, start=4, frames=5)  # start counts what was recorded
        assert numbers(part.frames) == [4, 4, 4, 4, 5]
        regular = read_clip(path, frames=5)
        assert numbers(regular.frames) == [0, 1, 2, 3, 4] and regular.notes == ()

    def test_a_phone_that_slows_down(self, tmp_path):
        """30, then 15 frames a second with a shaky clock: positions at constant speed stay on their line."""
        clock = np.random.default_rng(0)
        moments = np.cumsum([0.0, *[1 / 30] * 15, *[1 / 15] * 12]) + clock.uniform(-0.002, 0.002, 28)
        ticks = [round(1000 * (moment - moments[0])) for moment in moments]
        frames = np.zeros((28, 16, 256, 3), np.uint8)
        for frame, tick in zip(frames, ticks, strict=True):
            place = 10 + round(tick * 0.15)
            frame[:, place : place + 8] = WHITE
        with av.open(str(tmp_path / "phone.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
            stream.height, stream.width, stream.pix_fmt = 16, 256, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for tick, picture in zip(ticks, frames, strict=True):
                frame = VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = tick, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        clip = read_clip(tmp_path / "phone.mp4")
        bright = clip.frames[:, 8, :, 0].numpy() > 127
        places = (bright * np.arange(256)).sum(1) / bright.sum(1) - 13.5
        late = np.arange(len(places)) / clip.fps - places / 150  # seconds behind the truth
        assert abs(clip.fps - 30) < 3 and abs(len(places) - 1 - ticks[-1] * clip.fps / 1000) < 1
        assert late.min() > -0.25 / clip.fps - 0.005 and late.max() < 1 / 15  # at most one recorded frame
        assert np.abs(late[:13]).max() < 0.03

    @pytest.mark.parametrize("fps", [8, 16, 23.976, 30, 48])
    def test_conversion_keeps_the_time(self, clip_file, fps):
        clip = read_clip(clip_file, fps=fps)
        seen = np.array(numbers(clip.frames)) / 24
        late = np.arange(len(seen)) / fps - seen
        assert clip.fps == fps and seen[0] == 0 and abs(len(seen) / fps - 30 / 24) < 1 / 24 + 1 / fps
        assert late.min() >= -0.25 / fps - 1e-9 and late.max() < 1 / 24
        assert clip.notes == (() if fps == 23.976 else (f"24 fps become {fps:g}, in the clip's own time",))

    def test_the_own_rate_changes_nothing(self, clip_file):
        assert torch.equal(read_clip(clip_file, fps=24).frames, read_clip(clip_file).frames)

    def test_range_and_length_are_counted_after_it(self, clip_file):
        assert numbers(read_clip(clip_file, start=6, frames=5, fps=12).frames) == [6, 8, 10, 12, 14]
        text = message(read_clip, clip_file, start=6, frames=17, fps=12)
        assert "12 at 12 fps from there on and 17 frames from frame 6 on are asked for" in text

    def test_a_folder_has_the_rate_it_is_given(self, tmp_path):
        write_clip(tmp_path / "frames", torch.from_numpy(numbered(7)), 16)
        clip = read_clip(tmp_path / "frames", fps=8)
        assert numbers(clip.frames) == list(range(7)) and clip.fps == 8 and clip.notes == ()

    def test_gif_with_its_own_time_for_each_picture(self, tmp_path):
        pictures = [PIL.Image.fromarray(picture) for picture in numbered(4)]
        pictures[0].save(
            tmp_path / "g.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 100]
        )
        assert numbers(read_clip(tmp_path / "g.gif").frames) == [0, 1, 1, 1, 2, 3]


class TestColours:
    """Patches written with tags come back as the colours that were meant."""

    PATCHES = np.array(
        [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [200, 180, 40],
            [255, 255, 255],
            [128, 128, 128],
            [16, 16, 16],
        ]
    )
    # Luma's shares of red and blue: ITU-R BT.601, BT.709 and BT.2020.
    SHARES = MappingProxyType({6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)})

    def write(self, path, colours, matrix=2, range_=0, transfer=2, primaries=2, bits=8, size=16, luma_of=6):
        """Lossless patches side by side, in YUV worked out here; 2 = not said, then `luma_of` it is."""
        red, blue = self.SHARES[luma_of if matrix == 2 else matrix]
        rgb = np.asarray(colours, float) / 255
        luma = rgb @ [red, 1 - red - blue, blue]
        chroma = [(rgb[:, 2] - luma) / (2 - 2 * blue), (rgb[:, 0] - luma) / (2 - 2 * red)]
        scale, top = 1 << (bits - 8), (1 << bits) - 1
        full = range_ == 2
        planes = [luma * (top if full else 219 * scale) + (0 if full else 16 * scale)]
        planes += [c * (top if full else 224 * scale) + 128 * scale for c in chroma]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=24)
            stream.height, stream.width = size, size * len(rgb)
            stream.pix_fmt = "yuv444p" if bits == 8 else "yuv444p10le"
            context = stream.codec_context
            context.colorspace, context.color_range = matrix, range_
            context.color_trc, context.color_primaries = transfer, primaries
            for _ in range(2):
                frame = VideoFrame(stream.width, stream.height, stream.pix_fmt)
                frame.colorspace, frame.color_range = matrix, range_
                for plane, values in zip(frame.planes, planes, strict=True):
                    kind = np.uint8 if bits == 8 else np.uint16
                    row = np.zeros(plane.line_size // kind().nbytes, kind)
                    row[: stream.width] = np.repeat(values.round().clip(0, top), size)
                    plane.update(np.tile(row, (size, 1)).tobytes())
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    def read(self, path):
        clip = read_clip(path)
        size = clip.frames.shape[1]
        return clip.frames[0, size // 2, size // 2 :: size].numpy().astype(int), clip.notes

    @pytest.mark.parametrize("matrix", [2, 6, 1, 9])
    @pytest.mark.parametrize("range_", [0, 1, 2])
    @pytest.mark.parametrize("bits", [8, 10])
    def test_matrix_and_range(self, tmp_path, matrix, range_, bits):
        seen, notes = self.read(self.write(tmp_path / "c.mkv", self.PATCHES, matrix, range_, bits=bits))
        assert np.abs(seen - self.PATCHES).max() <= 3 and notes == ()

    def test_a_large_picture_without_tags_is_taken_for_bt709(self, tmp_path):
        """As players do; what we write large says what it is."""
        seen, _ = self.read(self.write(tmp_path / "untagged.mkv", self.PATCHES, size=160, luma_of=1))
        assert np.abs(seen - self.PATCHES).max() <= 3
        frames = np.tile(np.repeat(self.PATCHES, 160, 0).astype(np.uint8), (2, 160, 1, 1))
        write_clip(tmp_path / "pictures", torch.from_numpy(frames), 16)
        assert (read_clip(tmp_path / "pictures").frames.numpy() == frames).all()
        write_clip(tmp_path / "ours.mp4", torch.from_numpy(frames), 16)
        seen, _ = self.read(tmp_path / "ours.mp4")
        assert np.abs(seen - self.PATCHES).max() <= 4

    def test_hdr_is_tone_mapped(self, tmp_path):
        """Gray of 90 cd/m2 and less is shown as such on a screen whose white is 203, and above it all of
        them differ up to 1000 cd/m2, which is white; PQ and HLG agree."""
        nits = np.array([0.0, 1, 5, 20, 60, 85, 120, 203, 400, 1000])
        gray = {}
        for name, transfer, code in (("PQ", 16, pq_code(nits)), ("HLG", 18, hlg_code(nits))):
            colours = np.repeat(255 * code[:, None], 3, 1)
            path = self.write(tmp_path / f"{name}.mkv", colours, 9, 1, transfer, 9, bits=10)
            seen, notes = self.read(path)
            assert notes == (f"HDR ({name}) tone-mapped to SDR (BT.709)",)
            assert (seen == seen[:, :1]).all()
            small = read_clip(path, height=8).frames[0, 4, 4::8].numpy()
            assert np.abs(small - seen).max() <= 1  # it is shrunk before
            gray[name] = seen[:, 0]
            dark = nits < 90
            assert np.abs(gray[name][dark] - 255 * (nits[dark] / 203) ** (1 / 2.4)).max() <= 3
            assert (np.diff(gray[name]) > 4).all() and gray[name][-1] >= 253 and 220 < gray[name][7] < 240
        assert np.abs(gray["PQ"] - gray["HLG"]).max() <= 3

    @pytest.mark.parametrize("transfer", [16, 18, 1])
    def test_colours_in_bt2020_are_those_of_bt709(self, tmp_path, transfer):
        """The matrix between the two is worked out here, from the chromaticities of the primaries."""
        meant = self.PATCHES * (0.6 if transfer in (16, 18) else 1)  # below the tone curve
        light = (meant / 255) ** 2.4 @ np.linalg.solve(to_xyz(BT2020_XY), to_xyz(BT709_XY)).T
        if transfer == 18:
            luminance = light @ to_xyz(BT2020_XY)[1]
            scene = light * 0.203 * (luminance * 0.203)[:, None] ** (1 / 1.2 - 1)
            codes = hlg_oetf(scene)
        else:
            codes = pq_code(203 * light) if transfer == 16 else light ** (1 / 2.4)
        path = self.write(tmp_path / "w.mkv", 255 * codes, 9, 1, transfer, 9, bits=10)
        seen, notes = self.read(path)
        # One step of 10 bits is much where a channel that mixing leaves small has a steep curve.
        assert np.abs(seen - meant).max() <= 3 + 12 * (np.min(meant) < 1)
        assert np.abs(seen - meant).mean() < 3 and "to SDR (BT.709)" in notes[0]


BT709_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BT2020_XY = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def to_xyz(primaries):
    """(3,3) from linear R, G and B to CIE XYZ, white being D65."""

    def xyz(x, y):
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.stack([xyz(*xy) for xy in primaries], 1)
    return columns * np.linalg.solve(columns, xyz(0.3127, 0.3290))


def pq_code(nits):
    """SMPTE ST 2084, from the standard's rounded constants."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(nits):
    """ITU-R BT.2100 for gray on a screen of 1000 cd/m2: the inverse of gamma 1.2, then the OETF."""
    return hlg_oetf((nits / 1000) ** (1 / 1.2))


def hlg_oetf(scene):
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


class TestPictures:
    def test_odd_size_is_read_whole(self, tmp_path):
        path = write_video(tmp_path / "odd.mp4", numbered(6, 37, 51), pixels="yuv444p")
        assert read_clip(path).frames.shape == (6, 37, 51, 3)
        assert read_clip(path, height=32, width=32).frames.shape == (6, 32, 32, 3)

    def test_crop_is_to_the_centre(self, tmp_path):
        """A white square in the middle of a wide clip stays in the middle and keeps its proportions."""
        frames = np.zeros((3, 60, 120, 3), np.uint8)
        frames[:, 20:40, 50:70] = WHITE
        clip = read_clip(write_video(tmp_path / "c.mp4", frames), height=30, width=30)
        inside = clip.frames[0, :, :, 0] > 127
        rows, columns = np.nonzero(inside.numpy())
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 19)
        assert "120x60 cropped and scaled to 30x30" in clip.notes

    def test_shrinking_averages(self, tmp_path):
        """A chessboard of single pixels becomes gray: area interpolation, no aliasing."""
        board = np.indices((64, 64)).sum(0) % 2 * 255
        frames = np.repeat(np.repeat(board[None, :, :, None], 3, 0), 3, 3).astype(np.uint8)
        (tmp_path / "board").mkdir()
        for index, picture in enumerate(frames):
            cv2.imwrite(str(tmp_path / "board" / f"{index}.png"), picture)
        clip = read_clip(tmp_path / "board", height=8, width=8)
        assert clip.frames.min() >= 127 and clip.frames.max() <= 128

    def test_one_side_keeps_the_proportions(self, clip_file):
        assert read_clip(clip_file, height=24).frames.shape[1:3] == (24, 32)
        assert read_clip(clip_file, width=32).frames.shape[1:3] == (24, 32)

    def test_gray_and_ten_bits(self, tmp_path):
        gray = numbered(4)[..., :1]
        for pixels in ("gray", "gray10le", "yuv420p10le"):
            path = write_video(tmp_path / f"{pixels}.mkv", gray, codec="ffv1", pixels=pixels)
            assert numbers(read_clip(path).frames) == [0, 1, 2, 3], pixels

    def test_transparency_becomes_white(self, tmp_path):
        rgba = np.concatenate([numbered(3), np.full((3, 48, 64, 1), 255, np.uint8)], -1)
        opaque = write_video(tmp_path / "opaque.mov", rgba, codec="png", pixels="rgba")
        assert read_clip(opaque).notes == ()
        rgba[:, :, 32:, 3] = 0
        clip = read_clip(write_video(tmp_path / "half.mov", rgba, codec="png", pixels="rgba"))
        assert (clip.frames[:, :, 32:] == WHITE).all() and numbers(clip.frames) == [0, 1, 2]
        assert clip.notes == ("transparent parts become white",)

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_rotation_mark_is_applied(self, tmp_path, rotation):
        """The same pictures as OpenCV's reader shows, which is another implementation of the mark."""
        frames = numbered(3)
        frames[:, :10] = 200  # tells up from down
        path = write_video(tmp_path / "r.mp4", frames, rotation=rotation)
        picture = read_clip(path).frames[0].numpy()
        _, other = cv2.VideoCapture(str(path)).read()
        assert picture.shape == other.shape
        assert np.abs(picture.astype(int) - other[:, :, ::-1].astype(int)).mean() < 2

    def test_crop(self, clip_file, tmp_path):
        whole = read_clip(clip_file)
        part = read_clip(clip_file, crop=(20, 8, 40, 30))
        assert torch.equal(part.frames, whole.frames[:, 8:38, 20:60]) and part.notes == whole.notes
        path = write_video(tmp_path / "r.mp4", numbered(3), rotation=90)  # 48 wide, 64 high when upright
        assert read_clip(path, crop=(0, 10, 48, 54)).frames.shape[1:3] == (54, 48)
        assert read_clip(path, crop=(0, 10, 48, 54), height=32, width=32).frames.shape[1:3] == (32, 32)

    def test_sound_is_ignored(self, tmp_path):
        path = tmp_path / "talk.mp4"
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=16000, layout="mono")
            stream = container.add_stream("libx264", rate=24, options={"crf": "5"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for picture in numbered(24):
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            noise = np.random.default_rng(0).uniform(-1, 1, (1, 32000)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(sound.encode(samples))
            container.mux([*sound.encode(), *stream.encode()])
        assert numbers(read_clip(path).frames) == list(range(24))  # and not cut off: the sound is longer

    def test_pixels_that_are_not_square(self, tmp_path):
        path = write_video(tmp_path / "wide.mp4", numbered(3), aspect=Fraction(2, 1))
        assert read_clip(path).frames.shape[1:3] == (48, 128)
        assert read_clip(path, height=24, width=24).frames.shape[1:3] == (24, 24)


class TestBadInput:
    def test_no_such_file(self, tmp_path):
        assert "there is no such file" in message(read_clip, tmp_path / "none.mp4")

    @pytest.mark.parametrize("name", ["notes.txt", "notes.mp4"])
    def test_not_a_video(self, tmp_path, name):
        path = tmp_path / name
        path.write_text("This is a letter, not a video.\n" * 200)
        assert f"{path} is not a video" in message(read_clip, path)

    def test_empty_file_and_noise(self, tmp_path):
        for data in (b"", np.random.default_rng(0).bytes(10_000)):
            path = tmp_path / "x.mp4"
            path.write_bytes(data)
            assert "is not a video" in message(read_clip, path)

    def test_lists_that_name_other_files(self, clip_file, tmp_path):
        """ffmpeg would follow them to any file; what is read must be the file that was given."""
        made = tmp_path / "list.mp4"
        made.write_text(f"ffconcat version 1.0\nfile {clip_file.name}\n")
        assert "list of other files" in message(read_clip, made)
        made = tmp_path / "list.m3u8"
        made.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip_file.name}\n#EXT-X-ENDLIST\n")
        assert "list of other files" in message(read_clip, made)

    def test_odd_names(self, tmp_path):
        (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
        for name in ("loop.mp4", "x" * 300 + ".mp4", "nul\0.mp4"):
            assert "no such file" in message(read_clip, tmp_path / name)

    def test_picture_that_is_called_a_video(self, tmp_path):
        _, jpg = cv2.imencode(".jpg", numbered(1)[0])
        (tmp_path / "still.mp4").write_bytes(jpg.tobytes())
        assert "holds one frame" in message(read_clip, tmp_path / "still.mp4")

    def test_sound_without_pictures(self, tmp_path):
        path = tmp_path / "sound.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
            )
            samples.sample_rate = 16000
            container.mux(stream.encode(samples))
            container.mux(stream.encode())
        assert "it holds no moving pictures" in message(read_clip, path)

    def test_one_frame(self, tmp_path):
        assert "holds one frame" in message(read_clip, write_video(tmp_path / "one.mp4", numbered(1)))
        still = tmp_path / "still.png"
        cv2.imwrite(str(still), numbered(1)[0])
        assert "holds one frame" in message(read_clip, still)

    def test_no_frame(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "holds no pictures" in message(read_clip, tmp_path / "empty")

    def test_too_short(self, clip_file):
        text = message(read_clip, clip_file, frames=49)
        assert "too short" in text and "30 frames" in text and "49" in text
        assert "too short" in message(read_clip, clip_file, start=28, frames=5)
        assert "too short" in message(read_clip, clip_file, start=30)

    def test_corrupted_middle(self, tmp_path):
        """Bytes of the middle are overwritten: the message, not frames that the decoder has painted over.

        h264 has no checksum, so a few wrong bytes may decode to a wrong picture; a lost sector does not.
        """
        noise = np.random.default_rng(1)
        pictures = noise.integers(
            0, 255, (30, 48, 64, 3), np.uint8
        )  # large frames, so that all is picture data
        whole = write_video(tmp_path / "whole.mp4", pictures, between="0").read_bytes()
        for length in (3000, 10_000, len(whole) // 3):
            data = bytearray(whole)
            middle = len(data) // 2
            data[middle : middle + length] = noise.bytes(length)
            path = tmp_path / "damaged.mp4"
            path.write_bytes(data)
            assert "is damaged near frame" in message(read_clip, path), length

    def test_part_before_the_damage_is_usable(self, tmp_path):
        pictures = np.random.default_rng(1).integers(0, 255, (40, 48, 64, 3), np.uint8)
        path = write_video(tmp_path / "d.mp4", pictures, between="0")
        data = bytearray(path.read_bytes())
        start = len(data) * 3 // 4
        data[start : start + 3000] = bytes(3000)
        path.write_bytes(data)
        assert "damaged" in message(read_clip, path)
        assert len(read_clip(path, frames=9).frames) == 9

    def test_file_cut_off(self, tmp_path):
        """A download that stopped: the index stands in front, the pictures end early."""
        noise = np.random.default_rng(2).integers(0, 255, (30, 48, 64, 3), np.uint8)
        path = tmp_path / "cut.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=24)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for picture in noise:
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert "is damaged near frame" in message(read_clip, path)

    @pytest.mark.parametrize(
        ("name", "codec"),
        [("cut.webm", "libvpx-vp9"), ("cut.mkv", "ffv1"), ("cut.avi", "mpeg4"), ("cut.gif", None)],
    )
    def test_file_cut_off_that_does_not_count_its_frames(self, tmp_path, name, codec):
        noise = np.random.default_rng(2).integers(0, 255, (20, 48, 64, 3), np.uint8)
        path = tmp_path / name
        if codec:
            write_video(path, noise, codec=codec)
        else:
            write_clip(path, torch.from_numpy(noise), 16)
        assert len(read_clip(path).frames) == 20
        data = path.read_bytes()
        for kept in (len(data) * 3 // 5, len(data) - 1500, len(data) - 1):  # the last frame is lost, or none
            path.write_bytes(data[:kept])
            assert "is damaged near frame" in message(read_clip, path)

    def test_broken_headers_are_no_crash(self, tmp_path):
        """Bytes of the headers are hit one after the other: a clip or a message, never another exception."""
        whole = write_video(tmp_path / "whole.mkv", numbered(5)).read_bytes()
        path = tmp_path / "broken.mkv"
        clips, messages = [], []
        for place in range(4, 600, 11):
            path.write_bytes(whole[:place] + b"\xd7" + whole[place + 1 :])
            try:
                clips.append(read_clip(path).frames.shape)
            except UserError as error:
                messages.append(str(error))
        assert clips and all(shape[0] >= 1 and shape[-1] == 3 for shape in clips)
        assert messages and all("\n" not in text for text in messages)

    def test_pause(self, tmp_path):
        path = write_video(tmp_path / "pause.mkv", numbered(6), times=[0, 1, 2, 300, 301, 302])
        assert "stands still for 12.4 seconds" in message(read_clip, path)
        assert numbers(read_clip(path, start=3).frames) == [3, 4, 5]

    def test_crop_that_is_not_inside(self, clip_file):
        for crop in ((0, 0, 65, 48), (40, 8, 24, 41), (64, 0, 1, 1)):
            assert "64 wide and 48 high" in message(read_clip, clip_file, crop=crop), crop

    def test_size_that_changes(self, tmp_path):
        (tmp_path / "mixed").mkdir()
        for index, width in enumerate((64, 64, 48)):
            cv2.imwrite(str(tmp_path / "mixed" / f"{index}.png"), numbered(1, width=width)[0])
        assert "changes its size at frame 2" in message(read_clip, tmp_path / "mixed")

    def test_folder_with_a_broken_picture(self, tmp_path):
        write_clip(tmp_path / "frames", torch.from_numpy(numbered(4)), 16)
        (tmp_path / "frames" / "00002.png").write_bytes(b"not a picture")
        assert "00002.png is damaged" in message(read_clip, tmp_path / "frames")

    def test_too_long_for_memory(self, clip_file, monkeypatch):
        monkeypatch.setattr("fym.video.LARGEST_BYTES", 10 * 48 * 64 * 3)
        assert "Give --frames" in message(read_clip, clip_file)
        assert len(read_clip(clip_file, frames=10).frames) == 10


class TestLongClips:
    """2000 frames of 320x180, a minute and a half: 346 MB when decoded."""

    ASKED = (
        ({"frames": 49, "height": 96, "width": 96}, 49),
        ({"start": 1900, "frames": 49, "height": 96, "width": 96}, 49),
        ({"fps": 1.5}, 126),
        ({"height": 36}, 2000),
    )
    SCRIPT = f"""
import sys
import torch
from fym import memory
from fym.video import read_clip
cpu = torch.device("cpu")
read_clip(sys.argv[1], at_most=5)
for asked, _ in {ASKED}:
    before = memory.now()
    memory.reset_peak(cpu)
    clip = read_clip(sys.argv[1], **asked)
    print(len(clip.frames), clip.frames.nbytes / memory.MIB, memory.peak(cpu)["rss_mib"] - before)
"""

    @pytest.fixture(scope="class")
    def long_clip(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("long") / "long.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "30"})
            stream.height, stream.width, stream.pix_fmt = 180, 320, "yuv420p"
            for index in range(2000):
                frame = VideoFrame(320, 180, "yuv420p")
                for plane, value in zip(frame.planes, (16 + index % 200, 128, 128), strict=True):
                    plane.update(bytes([value]) * plane.buffer_size)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    def test_memory_is_that_of_the_frames_asked_for(self, long_clip):
        """In a process of its own: the frames, which lie in a buffer that grows, and the decoder's."""
        command = [sys.executable, "-c", self.SCRIPT, str(long_clip)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line, (asked, count) in zip(done.stdout.splitlines(), self.ASKED, strict=True):
            frames, kept, grown = map(float, line.split())
            assert frames == count
            assert grown < 1.2 * kept + 16, (asked, done.stdout)

    def test_nothing_after_the_last_frame_is_decoded(self, long_clip, monkeypatch):
        decoded = []
        plain = sources.upright
        monkeypatch.setattr(sources, "upright", lambda frame: decoded.append(0) or plain(frame))
        read_clip(long_clip, start=5, frames=9, height=36)
        assert len(decoded) == 14
        read_clip(long_clip, frames=9, fps=8, height=36)
        assert len(decoded) == 14 + 26  # the ninth is over when the 26th has come


class TestWriting:
    def test_the_same_pictures_make_the_same_file_whatever_memory_held_before(self, moving_square):
        random, pictures = np.random.default_rng(0), moving_square.numpy()
        files = set()
        for _ in range(150):
            for size in random.integers(1000, 600_000, 20):  # freed again, and taken by the encoder
                np.full(size, random.integers(256), np.uint8)
            files.add(encode_mp4(pictures, 8))
        assert len(files) == 1

    @pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
    @pytest.mark.parametrize("fps", [8, 16, 24])
    def test_round_trip(self, tmp_path, name, fps):
        frames = torch.from_numpy(numbered(13))
        write_clip(tmp_path / name, frames, fps)
        clip = read_clip(tmp_path / name)
        assert numbers(clip.frames) == list(range(13))
        error = (clip.frames.float() - frames.float()).abs().mean()
        assert error <= (0 if name == "a" else 2)
        if name != "a":
            assert clip.fps == pytest.approx(fps, rel=0.02)

    def test_still_frames_are_not_merged(self, tmp_path):
        """A clip that stands still keeps its number of frames in every format."""
        frames = torch.full((9, 32, 32, 3), 90, dtype=torch.uint8)
        for name in ("s.mp4", "s.gif", "s"):
            write_clip(tmp_path / name, frames, 16)
            assert len(read_clip(tmp_path / name).frames) == 9, name

    def test_odd_size_is_padded_in_mp4_only(self, tmp_path):
        frames = torch.from_numpy(numbered(5, 37, 51))
        for name, size in (("o.mp4", (38, 52)), ("o.gif", (37, 51)), ("o", (37, 51))):
            write_clip(tmp_path / name, frames, 16)
            assert read_clip(tmp_path / name).frames.shape[1:3] == size

    def test_same_frames_same_bytes(self):
        assert encode_mp4(numbered(9), 16) == encode_mp4(numbered(9), 16)

    def test_broken_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        """Disk full while writing: the message says so, the old clip stays, no temporary file is left."""
        path = tmp_path / "a.mp4"
        path.write_bytes(b"old")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        text = message(write_clip, path, torch.from_numpy(numbered(4)), 16)
        assert "No space left on device" in text and "Free some space" in text
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]

    def test_folder_is_replaced_whole_and_others_are_kept(self, tmp_path):
        write_clip(tmp_path / "f", torch.from_numpy(numbered(6)), 16)
        write_clip(tmp_path / "f", torch.from_numpy(numbered(3)), 16)
        assert sorted(os.listdir(tmp_path / "f")) == ["00000.png", "00001.png", "00002.png"]
        (tmp_path / "f" / "letter.txt").write_text("dear")
        assert "it holds other files" in message(
            write_clip, tmp_path / "f", torch.from_numpy(numbered(3)), 16
        )
        assert (tmp_path / "f" / "letter.txt").exists() and os.listdir(tmp_path) == ["f"]

    def test_names_that_cannot_be_written(self, tmp_path):
        assert "not written as .webm" in message(output_kind, "a.webm")
        (tmp_path / "d.mp4").mkdir()
        assert "it is a folder" in message(output_kind, tmp_path / "d.mp4")
        (tmp_path / "file").write_text("x")
        assert "cannot be written" in message(
            write_clip, tmp_path / "file" / "a.mp4", torch.zeros(2, 8, 8, 3).byte(), 8
        )

    def test_check_writable(self, tmp_path):
        files.check_writable(tmp_path / "new" / "deeper")
        assert os.listdir(tmp_path) == []
        (tmp_path / "file").write_text("x")
        assert "is a file, not a folder" in message(files.check_writable, tmp_path / "file" / "sub")

    @pytest.mark.parametrize(
        "frames", [torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3).byte(), torch.zeros(0, 8, 8, 3).byte()]
    )
    def test_wrong_frames(self, tmp_path, frames):
        with pytest.raises(ValueError, match=r"frames: must be \(F,H,W,3\) uint8"):
            write_clip(tmp_path / "a.mp4", frames, 16)
