"""Clips out: exact, whole or absent."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from recordings import message, numbered, numbers

from fym import files
from fym.video import encode_mp4, output_kind, read_clip, write_clip


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
