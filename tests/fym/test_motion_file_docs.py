"""docs/motion-file.md: every command, the Python of it and the figures, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from fym import cli
from fym.adapters import HeadLora
from fym.families import load_family
from fym.lora_file import read
from fym.motion_file import save_motion_file

PAGE = Path(__file__).parents[2] / "docs" / "motion-file.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def embedded():
    return load_family("embedded", dtype="float32", device="cpu")


@pytest.fixture
def files(tmp_path, monkeypatch, embedded):
    """The files the page speaks of, with random values, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    half = embedded.num_heads // 2

    def adapter(heads):
        made = HeadLora(
            [heads] * embedded.num_layers,
            num_heads=embedded.num_heads,
            head_dim=embedded.head_dim,
            rank=8,
            alpha=8.0,
            generator=generator,
        )
        for parameter in made.parameters():
            parameter.data.normal_(std=0.02, generator=generator)
        return made

    for name in ("motion", "camera", "subject"):
        about = {"model_id": "embedded", "model_hash": embedded.model_hash, "lowest_noise": 0.8}
        spatial = adapter(range(half, embedded.num_heads)) if name == "motion" else None
        save_motion_file(Path(f"{name}.safetensors"), adapter(range(half)), spatial, about)
    return tmp_path


def test_the_commands_run(files, capsys):
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert {command[1] for command in commands} == {"convert", "generate"} and len(commands) == 8
    for command in commands:
        small = ["--steps", "2", "--frames", "5"] if command[1] == "generate" else []
        assert command[0] == "fym" and cli.main([*command[1:], *small]) == 0, (command, capsys.readouterr())
    assert (files / "out.mp4").exists()
    assert read(files / "both.safetensors")[0].rank == 16
    # Half of the heads: A of q, k, v and B of o are whole, the other half of the matrices is halved.
    sizes = [(files / f"{name}.safetensors").stat().st_size for name in ("small", "motion")]
    assert abs(sizes[0] / sizes[1] - 0.75) < 0.01


def test_the_python_runs(files):
    for block in blocks("python"):
        names: dict = {}
        exec(block, names)
        assert names["pipe"].get_active_adapters() == ["motion", "subject"]


def test_the_refusal_reads_so(files, capsys):
    torch.save({"x": torch.zeros(1)}, "bad.pt")
    assert cli.main(["generate", "--prompt", "a", "--motion", "bad.pt"]) == 2
    assert capsys.readouterr().err == blocks("text")[0]


def test_the_share_of_early_steps():
    """The formula and the three figures, against the schedule of diffusers."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    text, level = PAGE.read_text("utf-8"), 0.7
    for shift in (3, 5, 8):
        share = 1 - level / (shift - (shift - 1) * level)
        assert re.search(rf"{share:.2f} at (L = 0.7 and )?s = {shift}", text)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=float(shift))
        scheduler.set_timesteps(1000)
        assert abs((scheduler.timesteps >= 1000 * level).float().mean().item() - share) < 0.01
