"""The command line: options are fields, checks come before long work, messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from fym import cli
from fym.config import OPTIONS
from fym.config_file import default_config, load_config
from fym.errors import UserError
from fym.options import tomllib
from fym.video import read_clip, write_clip

RUN_CONTROL = {"config_file", "assignments", "dry_run", "plan_for", "fresh", "as_json", "force", "path"}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Every test works in its own empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clip() -> str:
    return save_clip("clip.mp4", 17)


def save_clip(name: str, frames: int, height: int = 32, width: int = 32) -> str:
    pictures = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), np.uint8)
    write_clip(name, torch.from_numpy(pictures), 16)
    return name


@pytest.fixture
def no_work(monkeypatch):
    """Anything long is forbidden: loading a model fails the test."""

    def forbidden(*args, **kwargs):
        raise AssertionError("long work began before the input was checked")

    monkeypatch.setattr("fym.tune.train", forbidden)
    monkeypatch.setattr("fym.tune.plan", forbidden)
    monkeypatch.setattr("fym.families.load_family", forbidden)


def refused(capsys, *arguments: str) -> str:
    """Runs a command that must end with code 2 and one message; returns the message."""
    before = sorted(Path().rglob("*"))
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fym: ") and "Traceback" not in err
    assert sorted(Path().rglob("*")) == before, "a refused command leaves files"
    return err


class TestOptions:
    def test_every_option_is_a_field(self):
        """Or one of the few that steer the run itself. bench, convert and ui have no run."""
        for command in cli.cli.commands.values():
            for param in command.params if command.name not in ("bench", "convert", "ui") else ():
                field = getattr(param, "field", None)
                assert field in OPTIONS or param.name in RUN_CONTROL, (command.name, param.name)

    def test_init_writes_every_option(self):
        assert cli.main(["init"]) == 0
        parsed = tomllib.loads(Path("fym.toml").read_text())
        for command in cli.cli.commands.values():
            for field in (getattr(p, "field", None) for p in command.params):
                if field:
                    section = parsed
                    for part in field.split("."):
                        section = section[part]
        assert load_config("fym.toml") == default_config()

    def test_init_does_not_overwrite(self, capsys):
        assert cli.main(["init", "a.toml", "--preset", "paper"]) == 0
        capsys.readouterr()
        assert "is there already" in refused(capsys, "init", "a.toml")
        assert cli.main(["init", "a.toml", "--force"]) == 0

    def test_every_command_has_help(self, capsys):
        for name, command in cli.cli.commands.items():
            assert cli.main([name, "--help"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert command.help.splitlines()[0] in shown
            for param in command.params:
                if isinstance(param, click.Option):
                    assert param.help, (name, param.name)

    def test_help_needs_no_torch(self):
        """`fym --help` answers at once: the heavy libraries are not imported for it."""
        code = "import sys; from fym.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    def test_options_reach_the_configuration(self, clip, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "fym.tune.train", lambda config, run_dir, *, console: seen.append((config, run_dir))
        )
        Path("c.toml").write_text("[temporal]\nrank = 4\nsteps = 9\n")
        arguments = ["train", clip, "--prompt", '"quoted" = [text]', "-o", "out/run", "--config", "c.toml"]
        arguments += ["--temporal-steps", "7", "--sparse-frames", "9", "--set", "temporal.debias=true"]
        arguments += ["--sample-prompt", "a", "--sample-prompt", "b, c"]
        assert cli.main(arguments) == 0
        config, run_dir = seen[0]
        assert run_dir == Path("out/run") and config.clip.path == [clip]
        assert config.clip.prompt == ['"quoted" = [text]'] and config.generate.prompts == ["a", "b, c"]
        assert (config.temporal.rank, config.temporal.steps, config.temporal.sparse_frames) == (4, 7, 9)
        assert config.temporal.debias is True and config.preset == "tiny"

    def test_unknown_option_and_command(self, capsys):
        assert cli.main(["train", "--promt", "x"]) == 2
        assert "--prompt" in capsys.readouterr().err
        assert cli.main(["trian"]) == 2


@pytest.mark.usefixtures("no_work")
class TestBadInput:
    """Each is refused before a model is loaded, and leaves no file behind."""

    def test_not_a_video(self, capsys):
        Path("letter.mp4").write_text("not a video")
        assert "letter.mp4 is not a video" in refused(capsys, "train", "letter.mp4", "--prompt", "a ball")

    def test_no_such_clip_and_no_clip(self, capsys):
        assert "no such file" in refused(capsys, "train", "none.mp4", "--prompt", "a ball")
        assert "No clip" in refused(capsys, "train", "--prompt", "a ball")

    def test_one_frame(self, capsys):
        assert "holds one frame" in refused(capsys, "train", save_clip("a.mp4", 1), "--prompt", "a ball")

    def test_too_short_for_sparse_sampling(self, capsys):
        message = refused(capsys, "train", save_clip("a.mp4", 10), "--prompt", "a ball")
        assert "10 frames from frame 0 on, and sparse sampling picks 13" in message
        assert "--sparse-frames 9" in message
        message = refused(capsys, "train", save_clip("b.mp4", 4), "--prompt", "a ball")
        assert "Use a longer clip" in message

    def test_corrupted_middle(self, capsys, clip):
        data = bytearray(Path(clip).read_bytes())
        data[len(data) // 3 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 3)
        Path(clip).write_bytes(data)
        assert "is damaged near frame" in refused(capsys, "train", clip, "--prompt", "a ball")

    @pytest.mark.parametrize("prompt", ["", "   "])
    def test_empty_prompt(self, capsys, clip, prompt):
        assert "The prompt is empty" in refused(capsys, "train", clip, "--prompt", prompt)
        assert "empty" in refused(capsys, "train", clip, "--prompt", "a ball", "--sample-prompt", prompt)
        assert "is empty" in refused(capsys, "generate", "--prompt", "a ball", "--prompt", prompt)

    def test_no_prompt(self, capsys, clip):
        assert "The prompt is empty" in refused(capsys, "train", clip)
        assert "No prompt" in refused(capsys, "generate")

    def test_unknown_keys_all_at_once(self, capsys, clip):
        Path("c.toml").write_text("[temporal]\nsparse_frame = 9\n[tune]\nsead = 1\n")
        message = refused(capsys, "train", clip, "--config", "c.toml", "--set", "lr=1", "--seed", "x")
        for part in (
            "temporal.sparse_frames?",
            "tune.seed?",
            "learning_rate?",
            'tune.seed = "x"',
            "4 mistakes",
        ):
            assert part in message

    def test_unwritable_output(self, capsys, clip):
        Path("file").write_text("x")
        assert "cannot be written" in refused(capsys, "train", clip, "--prompt", "a", "-o", "file/run")
        assert "cannot be written" in refused(capsys, "generate", "--prompt", "a", "-o", "file/a.mp4")
        assert "not written as .avi" in refused(capsys, "generate", "--prompt", "a", "-o", "a.avi")
        assert "cannot be written" in refused(capsys, "classify", clip, "-o", "file/run")

    def test_a_crop_outside_and_one_that_is_none(self, clip, capsys):
        assert "is not inside" in refused(capsys, "train", clip, "--prompt", "a", "--crop", "0:0:999:9")
        assert "X:Y:WIDTH:HEIGHT" in refused(capsys, "train", clip, "--prompt", "a", "--crop", "9x9")

    def test_prompts_that_do_not_match_the_clips(self, clip, capsys):
        text = refused(capsys, "train", clip, clip, clip, "--prompt", "a", "--prompt", "b")
        assert "2 prompts and 3 clips" in text
        assert "2 prompts and 1 clip:" in refused(capsys, "classify", clip, "--prompt", "a", "--prompt", "b")
        assert "prompt is empty" in refused(capsys, "train", clip, clip, "--prompt", "a", "--prompt", "")

    def test_fresh_keeps_the_old_run_when_refused(self, capsys):
        Path("runs/a/checkpoints").mkdir(parents=True)
        Path("runs/a/motion.safetensors").write_text("old")
        refused(capsys, "train", save_clip("a.mp4", 4), "--prompt", "a ball", "--fresh")
        assert Path("runs/a/motion.safetensors").read_text() == "old"


class TestTrain:
    def test_a_real_gif_of_a_variable_frame_rate_is_accepted(self, monkeypatch):
        from PIL import Image

        seen = []
        monkeypatch.setattr("fym.tune.train", lambda config, run_dir, *, console: seen.append(run_dir))
        pictures = [Image.new("L", (16, 16), 20 * i) for i in range(8)]
        times = [40, 40, 40, 40, 200, 40, 40, 40]
        pictures[0].save("a.gif", save_all=True, append_images=pictures[1:], duration=times)
        assert cli.main(["train", "a.gif", "--prompt", "a", "--set", "temporal.sparse_frames=9"]) == 0
        assert seen == [Path("runs/a")]

    def test_odd_size_is_accepted(self, monkeypatch):
        seen = []
        monkeypatch.setattr("fym.tune.train", lambda config, run_dir, *, console: seen.append(run_dir))
        save_clip("odd", 13, 37, 51)
        assert cli.main(["train", "odd", "--prompt", "a ball"]) == 0
        assert seen == [Path("runs/odd")]

    def test_fresh_removes_a_run_and_nothing_else(self, clip, monkeypatch):
        monkeypatch.setattr("fym.tune.train", lambda config, run_dir, *, console: None)
        run = Path("runs/clip")
        (run / "checkpoints").mkdir(parents=True)
        for name in ("train.jsonl", "checkpoints/1", "letter.txt"):
            (run / name).write_text("x")
        assert cli.main(["train", clip, "--prompt", "a"]) == 0
        assert (run / "train.jsonl").exists()
        assert cli.main(["train", clip, "--prompt", "a", "--fresh"]) == 0
        assert [f.name for f in run.iterdir()] == ["letter.txt"]

    def test_dry_run_prints_the_plan_and_trains_nothing(self, clip, monkeypatch, capsys):
        plan = [("Model", [("path", "embedded")])]
        monkeypatch.setattr("fym.tune.plan", lambda config, gpu, processes: plan)
        monkeypatch.setattr("fym.tune.train", lambda *a, **k: pytest.fail("trained"))
        assert cli.main(["train", clip, "--prompt", "a", "--dry-run"]) == 0
        assert "embedded" in capsys.readouterr().out and not Path("runs").exists()


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (UserError("It is broken", "it fell", "Glue it"), 2, "fym: It is broken: it fell. Glue it.\n"),
            (KeyboardInterrupt(), 130, "fym: stopped; the same command goes on at the first step\n"),
            (RuntimeError("oh"), 1, "fym: an internal error, RuntimeError: oh."),
        ],
    )
    @pytest.mark.parametrize("debug", [False, True])
    def test_codes_and_messages(self, clip, monkeypatch, capsys, error, code, text, debug):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr("fym.tune.train", fail)
        monkeypatch.setenv("FYM_DEBUG", "1" if debug else "0")
        assert cli.main(["train", clip, "--prompt", "a"]) == code
        err = capsys.readouterr().err
        assert ("Traceback" in err) == (debug and code != 130)
        assert debug or text in err

    def test_as_a_program(self):
        done = subprocess.run([sys.executable, "-m", "fym", "train", "x.mp4"], capture_output=True, text=True)
        assert done.returncode == 2 and "there is no such file" in done.stderr and done.stdout == ""
        done = subprocess.run([sys.executable, "-m", "fym", "--version"], capture_output=True, text=True)
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        assert done.returncode == 0 and done.stdout.split()[-1] == project["version"]


class FakeFamily:
    """What the command needs of a model."""

    default_fps = 16.0


class TestGenerate:
    """The command around the sampler: jobs, files, and what is left when something goes wrong."""

    @pytest.fixture
    def sampler(self, monkeypatch):
        """A sampler that remembers its calls and fails at the prompt "fail" with the error set on it."""
        calls: list[dict] = []

        def generate(family, prompts, *, seeds, **settings):
            calls.append({"prompts": prompts, "seeds": seeds, **settings})
            if prompts == ["fail"]:
                raise KeyboardInterrupt
            return [torch.full((5, 16, 16, 3), 40 * len(calls), dtype=torch.uint8)]

        monkeypatch.setattr("fym.families.load_family", lambda *args, **kwargs: FakeFamily())
        monkeypatch.setattr("fym.generate.generate", generate)
        return calls

    def test_several_prompts_and_seeds_in_one_call(self, sampler, capsys):
        arguments = [
            "generate",
            "--prompt",
            "a",
            "--prompt",
            "b",
            "--seed",
            "3",
            "--seed",
            "4",
            "-o",
            "new/o.mp4",
        ]
        options = ["--scale", "0.5", "--steps", "7", "--guidance-scale", "1", "--negative-prompt", "c"]
        assert cli.main([*arguments, *options]) == 0
        names = ["o-0-s3.mp4", "o-0-s4.mp4", "o-1-s3.mp4", "o-1-s4.mp4"]
        assert sorted(f.name for f in Path("new").iterdir()) == names
        assert [(c["prompts"], c["seeds"]) for c in sampler] == [
            (["a"], [3]),
            (["a"], [4]),
            (["b"], [3]),
            (["b"], [4]),
        ]
        given = ("temporal_scale", "steps", "guidance_scale", "negative_prompt")
        assert all([c[name] for name in given] == [[0.5], 7, 1.0, "c"] for c in sampler)
        assert abs(int(read_clip("new/o-1-s3.mp4").frames.float().mean()) - 120) < 3
        assert all(name in capsys.readouterr().out for name in names[:1])

    def test_values_of_the_model_unless_given(self, sampler):
        assert cli.main(["generate", "--prompt", "a"]) == 0
        assert (
            sampler[0]["guidance_scale"] is None
            and sampler[0]["negative_prompt"] == ""
            and sampler[0]["num_frames"] == 0
            and sampler[0]["motion"] == []
        )

    def test_interrupted_keeps_what_is_finished(self, sampler):
        assert cli.main(["generate", "--prompt", "a", "--prompt", "fail", "--prompt", "b"]) == 130
        assert os.listdir() == ["out-0.mp4"] and len(read_clip("out-0.mp4").frames) == 5

    def test_motion_file_that_is_none(self, sampler, capsys):
        Path("bad.safetensors").write_text("nothing")
        for name in ("bad.safetensors", "missing.safetensors"):
            assert name in refused(capsys, "generate", "--prompt", "a", "--motion", name)
        assert sampler == []


class TestWholeJob:
    """With a random-weights model: train, generate, and what stands between the two."""

    @pytest.fixture
    def arguments(self, tiny_wan, moving_square) -> list[str]:
        write_clip("square.mp4", moving_square, 8)
        given = ["train", "square.mp4", "--prompt", "a square moves", "--model", str(tiny_wan()), "-o", "run"]
        given += ["--sparse-frames", "9", "--spatial-steps", "3", "--temporal-steps", "6"]
        return [*given, "--rule", "topk", "--set", "heads.topk=3", "--set", "tune.checkpoint_every=2"]

    def test_train_then_generate(self, arguments, tiny_wan, capsys):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert "temporal 6/6" in out and "run/motion.safetensors" in out
        names = {"config.toml", "heads.json", "heads.png", "train.jsonl", "motion.safetensors", "report.html"}
        assert names <= set(os.listdir("run")) and load_config("run/config.toml").temporal.steps == 6
        generate = ["generate", "--motion", "run/motion.safetensors", "--prompt", "a ball", "-o", "a.gif"]
        assert cli.main([*generate, "--model", str(tiny_wan())]) == 0
        assert read_clip("a.gif").frames.shape == (17, 32, 48, 3)
        other = str(tiny_wan(seed=1))
        capsys.readouterr()
        message = refused(capsys, *generate, "--model", other)
        assert "belongs to another model" in message

    def test_stopped_run_goes_on(self, arguments, monkeypatch, capsys):
        """Ctrl-C at a step: exit code 130 and a checkpoint; the same command finishes the rest."""
        step = cli.Console.step

        def interrupt(self, stage, number, row):
            step(self, stage, number, row)
            if type(self) is cli.Console and stage == "temporal" and number == 3:  # not in the estimate
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(cli.Console, "step", interrupt)
            assert cli.main(arguments) == 130
        assert not Path("run/motion.safetensors").exists() and os.listdir("run/checkpoints")
        # The last checkpoint is that of the second step.
        said = capsys.readouterr().err
        assert "fym: stopped; the same command goes on after step 2 of the temporal stage\n" in said
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert "of the temporal stage" in out and "spatial 3/3" not in out and "temporal 6/6" in out

    def test_dry_run_and_classify_do_no_more(self, arguments, capsys):
        assert cli.main([*arguments, "--dry-run"]) == 0
        assert "tokens" in capsys.readouterr().out and not Path("run").exists()
        classify = [
            "classify",
            "square.mp4",
            "--model",
            arguments[arguments.index("--model") + 1],
            "-o",
            "map",
        ]
        assert cli.main(classify) == 0
        assert {"heads.json", "heads.png"} <= set(os.listdir("map"))
        assert not Path("map/motion.safetensors").exists()
