"""Clips in and out: exact frames, sizes, and every kind of file that is no usable clip."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from fym import files
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
    path: Path, frames: np.ndarray, *, codec="libx264", pixels="yuv420p", times=None, rotation=0, aspect=None
) -> Path:
    """A video through PyAV; `times` are the frames' moments in 1/24 s."""
    source = {1: "gray", 3: "rgb24", 4: "rgba"}[frames.shape[-1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if codec == "libx264":
            stream.options = {"crf": "5", "g": "12"}
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
        whole = write_video(tmp_path / "whole.mp4", pictures).read_bytes()
        for length in (3000, 10_000, len(whole) // 3):
            data = bytearray(whole)
            middle = len(data) // 2
            data[middle : middle + length] = noise.bytes(length)
            path = tmp_path / "damaged.mp4"
            path.write_bytes(data)
            assert "is damaged near frame" in message(read_clip, path), length

    def test_part_before_the_damage_is_usable(self, tmp_path):
        path = write_video(
            tmp_path / "d.mp4", np.random.default_rng(1).integers(0, 255, (40, 48, 64, 3), np.uint8)
        )
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

    def test_variable_frame_rate(self, tmp_path):
        times = [0, 1, 2, 3, 4, 8, 9, 10, 11, 15, 16, 17]
        path = write_video(tmp_path / "vfr.mkv", numbered(12), times=times)
        text = message(read_clip, path)
        assert "variable frame rate" in text and "fps=24" in text
        assert numbers(read_clip(path, frames=5).frames) == [0, 1, 2, 3, 4]  # this part is regular

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


class TestWriting:
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
