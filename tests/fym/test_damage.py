"""Damaged clips and configurations: each is read or refused with one sentence, in short time.

Motion files are in test_lora_file.py: their digest tells more, so more is asked of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recordings import numbered, write_video

from benchmarks.damage import CUT_OFF, KINDS, damaged
from fym.config_file import default_config, load_config, to_toml
from fym.errors import UserError
from fym.video import encode_gif, read_clip

CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}
PATIENCE = 5  # seconds for one small file


def outcomes(read: Callable[[Path], object], path: Path, count: int) -> Counter[str]:
    """How `count` damaged versions of a file end; a file that is cut off must be refused."""
    data, seen = path.read_bytes(), Counter[str]()
    read(path)
    for number in range(count):
        path.write_bytes(damaged(data, number))
        started = time.monotonic()
        try:
            read(path)
        except UserError:
            seen["refused"] += 1
        else:
            seen["read"] += 1
            seen["cut off, and read"] += number % KINDS == CUT_OFF
        assert time.monotonic() - started < PATIENCE, number
    return seen


def clip(folder: Path, kind: str) -> Path:
    """A second of a gradient beside noise, so that damage hits data and not long runs of nothing."""
    frames, path = numbered(30), folder / f"clip.{kind}"
    frames[:, :, 32:] = np.random.default_rng(0).integers(0, 255, (30, 48, 32, 3))
    if kind == "gif":
        path.write_bytes(encode_gif(frames, 25))
        return path
    return write_video(path, frames, codec=CODECS[kind])


@pytest.mark.parametrize(
    ("kind", "count"), [("mp4", 200), ("webm", 40), ("mkv", 40), ("avi", 40), ("gif", 40)]
)
def test_clips(tmp_path, kind, count):
    """No checksum protects the pictures in a video, so changed bytes may come out as changed pictures."""
    seen = outcomes(read_clip, clip(tmp_path, kind), count)
    assert seen["refused"] > count // 4 and seen["cut off, and read"] == 0


def test_configurations(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(to_toml(default_config(), commented=True))
    seen = outcomes(load_config, path, 200)
    assert seen["refused"] > 60 and seen["read"] > 20  # most of the file is comments


@pytest.mark.parametrize(
    "text",
    [
        "a = " + 100_000 * "[",
        "[" + ".".join(5000 * "a") + "]",
        f"[tune]\nseed = {5000 * '9'}",
        f"[temporal]\nlearning_rate = {400 * '1'}",
        f"[temporal]\nrank = {400 * '1'}",
        "[temporal]\nlearning_rate = 1e400",
        "[tune]\nseed = 1979-05-27",
        "tune = 3",
        "[[tune]]\nseed = 1",
        "[generate]\nprompts = [[1]]",
        "#" * (2 << 20),
        "\0",
    ],
)
def test_configurations_made_to_break_the_reader(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_config(path)


def test_an_endless_configuration_is_refused():
    with pytest.raises(UserError, match="more than 1 MB"):
        load_config("/dev/zero")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CODECS, "gif", "toml"])
def test_thousands(tmp_path, capsys, kind):
    if kind == "toml":
        path, read = tmp_path / "c.toml", load_config
        path.write_text(to_toml(default_config(), commented=True))
    else:
        path, read = clip(tmp_path, kind), read_clip
    seen = outcomes(read, path, 2000)
    with capsys.disabled():
        print(f"\n{kind}: {dict(seen)}")
    assert seen["cut off, and read"] == 0 or kind == "toml"
