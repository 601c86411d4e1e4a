"""docs/clips.md: every command, on a phone's kind of recording, and what it says of the frames it takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from fym import cli, hdr
from fym.material import read_references

PAGE = Path(__file__).parents[2] / "docs" / "clips.md"


class Model:
    """What reading a reference needs of one."""

    default_height, default_width, default_frames = 48, 48, 49

    def check_size(self, height, width):
        pass


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """Runs a command in a folder with the files of the page; gives the references it would tune on."""
    monkeypatch.chdir(tmp_path)
    for name in ("phone", "fall", "fall-again"):
        with av.open(f"{name}.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
            stream.height, stream.width, stream.pix_fmt = 90, 160, "yuv420p"
            for index in range(90):
                planes = np.full((135, 160), 128, np.uint8)
                planes[:90] = 16 + 2 * index  # luma, of which black has 16 and white 235
                container.mux(stream.encode(VideoFrame.from_ndarray(planes, format="yuv420p")))
            container.mux(stream.encode())
    seen = []

    def stand_in(config, run_dir, *, console):
        seen.append((config.clip.captions, read_references(config.clip, Model()), config.tune.scenes))

    monkeypatch.setattr("fym.tune.train", stand_in)
    monkeypatch.setattr("fym.tune.classify_clip", stand_in)

    def run(command):
        assert cli.main(command[1:]) == 0
        return seen.pop()

    return run


def numbers(clip):
    return (clip.frames.double().mean((1, 2, 3)) * 219 / 255 / 2).round().int().tolist()


def test_the_commands_take_the_frames_it_says(taken):
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    found = [taken(command) for command in commands]
    part, cropped, slower, classified, shared, described, filmed = found
    assert numbers(part[1][0]) == list(range(12, 29))
    assert numbers(cropped[1][0]) == list(range(49))
    assert cropped[1][0].notes == ("80x90 cropped and scaled to 48x48",)
    late = np.arange(45) / 16 - np.array(numbers(slower[1][0])) / 30
    assert slower[1][0].fps == classified[1][0].fps == 16
    assert late.min() > -0.25 / 16 - 0.001 and late.max() < 1 / 30
    assert [len(captions) for captions, *_ in found] == [1, 1, 1, 1, 2, 2, 1]
    assert shared[0] == ["a red circle"] * 2 and described[0][1] == "a white star on blue"
    assert [len(clips) for _, clips, _ in found] == [1, 1, 1, 1, 2, 2, 1]
    assert filmed[2] == ["a forest path", "a market street", "books on a shelf"]


def test_the_figures_of_the_tone_curve():
    """90 cd/m2 is where it begins; paper white becomes nine tenths of white."""
    value = hdr._rolled_off(np.array([80, 90, 100, 203, 1000], np.float32))
    assert np.allclose(value[:2], [80, 90], rtol=2e-3) and value[2] < 99.9
    assert abs((value[3] / 203) ** (1 / 2.4) - 0.9) < 0.01 and abs(value[4] - 203) < 0.1
