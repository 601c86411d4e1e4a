"""Clips in: exact frames and rates, and memory for the frames asked for."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
import torch
from av.video.frame import VideoFrame
from recordings import WHITE, message, numbered, numbers, write_video

from fym import sources
from fym.video import read_clip, write_clip


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
