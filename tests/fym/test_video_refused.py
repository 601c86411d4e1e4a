"""Clips in: every kind of file that is no usable clip is refused with one sentence."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from recordings import message, numbered, numbers, write_video

from fym.errors import UserError
from fym.video import read_clip, write_clip


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
