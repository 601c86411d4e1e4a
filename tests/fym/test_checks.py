"""What is checked before long work: the jobs of a generation and the place of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fym.checks import plan_generation, run_directory
from fym.config_file import default_config, load_config, to_toml
from fym.errors import UserError


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Every test works in its own empty folder."""
    monkeypatch.chdir(tmp_path)


def test_run_directory():
    config = default_config()
    config.clip.path = ["some/where/clip.v2.mp4"]
    assert run_directory(config) == Path("runs/clip.v2")
    config.output = "elsewhere"
    assert run_directory(config) == Path("elsewhere")


class TestGeneratePlan:
    @staticmethod
    def plan(output: str, prompts=("a red ball",), seeds=(0,)) -> list[str]:
        config = default_config()
        config.generate.prompts, config.generate.seeds = list(prompts), list(seeds)
        config.generate.output = output
        return [str(job.path) for job in plan_generation(config)]

    def test_one_clip_keeps_the_name(self):
        assert self.plan("out.mp4") == ["out.mp4"]

    def test_several_get_what_tells_them_apart(self):
        assert self.plan("d/o.gif", ["a", "b"]) == ["d/o-0.gif", "d/o-1.gif"]
        assert self.plan("o", seeds=[3, 5]) == ["o-s3", "o-s5"]
        assert self.plan("o.mp4", ["a", "b"], [1, 2])[2:] == ["o-1-s1.mp4", "o-1-s2.mp4"]

    def test_pattern(self):
        names = self.plan("{prompt}_{seed}.mp4", ["A red ball, on sand!", "../etc"], [7])
        assert names == ["a-red-ball-on-sand_7.mp4", "etc_7.mp4"]
        assert len(self.plan("{prompt}.mp4", ["long " * 50])[0]) < 60

    @pytest.mark.parametrize(
        ("output", "prompts", "seeds", "expected"),
        [
            ("{seed}.mp4", ("a", "b"), (0,), "names several clips alike"),
            ("o.mp4", ("a",), (1, 1), "names several clips alike"),
            ("{sed}.mp4", ("a",), (1,), "{sed} stands for nothing"),
            ("o.mp4", ("a", " "), (1,), "Prompt 2 of 2 is empty"),
        ],
    )
    def test_mistakes(self, output, prompts, seeds, expected):
        with pytest.raises(UserError) as caught:
            self.plan(output, prompts, seeds)
        assert expected in str(caught.value)

    def test_prompt_of_the_configuration_serves(self, tmp_path):
        config = default_config()
        config.clip.prompt = ["a ball"]
        Path("c.toml").write_text(to_toml(config))
        assert [job.prompt for job in plan_generation(load_config("c.toml"))] == ["a ball"]
