"""Runs that stop or are stopped: resumed bit for bit, and never mistaken for another run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tuning import STEPS, InterruptingConsole, assert_same, log_of, run, stopped_and_straight

from fym import tune
from fym.checkpoint import load_checkpoint
from fym.environment import deterministic
from fym.errors import UserError
from fym.stopping import Stopped
from fym.video import write_clip

pytestmark = pytest.mark.usefixtures("short_end")


@pytest.mark.parametrize(
    "where", [("spatial", 3), ("spatial", STEPS), ("temporal", 1), ("temporal", 5), ("temporal", STEPS)]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(uninterrupted, configure, tmp_path, where):
    """Ctrl-C leaves a checkpoint of that very step; the same command goes on as if nothing had happened."""
    with pytest.raises(KeyboardInterrupt):
        run(configure(), tmp_path, InterruptingConsole(*where))
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert (kept.record["stage"], kept.record["step"]) == where
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(configure(), tmp_path)
    assert_same(uninterrupted, tmp_path)
    assert log_of(tmp_path) == log_of(uninterrupted)


@pytest.mark.parametrize("how", ["SIGTERM", "stop file"])
def test_sigterm_and_a_stop_file_do_what_ctrl_c_does(uninterrupted, configure, tmp_path, how):
    """A file of an earlier go stops nothing; deterministic algorithms and TensorBoard change no bit here."""
    config = configure(tune__tensorboard=True)
    (tmp_path / "stop").touch()

    def stop():
        if how == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        else:
            (tmp_path / "stop").touch()

    with pytest.raises(Stopped) as stopped:
        run(config, tmp_path, InterruptingConsole("temporal", 3, stop))
    assert stopped.value.number == (signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert (kept.record["stage"], kept.record["step"]) == ("temporal", 3)
    assert not (tmp_path / "stop").exists()
    with deterministic(True):
        run(config, tmp_path)
    assert_same(uninterrupted, tmp_path)
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"spatial", "temporal", "samples"}
    goes = json.loads((tmp_path / "environment.json").read_text())
    assert [len(go["settings"]) for go in goes] == [len(goes[0]["settings"]), len(goes[0]["settings"]) + 1]


@pytest.mark.parametrize(
    "options",
    [
        {"temporal__picking": "phase", "temporal__debias": True, "temporal__batch_size": 2},
        {
            "tune__looks": 3,
            "clip__prompt": "an orange square",
            "tune__optimizer": "muon",
            "temporal__batch_size": 2,
        },
    ],
    ids=["phase", "looks"],
)
def test_random_data_resumes_bit_for_bit_too(options, configure, planted, tmp_path):
    """Here the picked frames, or the looks, come from the generator as well."""
    stopped_and_straight(configure(**options), tmp_path)


def test_killed_at_any_moment_it_resumes_to_the_same_result(uninterrupted, configure, tmp_path):
    """SIGKILL while it trains, a checkpoint at every step; the last one loads and leads to the same end."""
    config = configure(tune__checkpoint_every=1)
    from fym.config_file import to_toml

    (tmp_path / "config.toml").write_text(to_toml(config))
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = {[str(Path(__file__).parents[2])]!r}\n"
        "import torch\ntorch.set_num_threads(int(sys.argv[3]))\n"
        "from pathlib import Path\nfrom fym import tune\nfrom fym.config_file import load_config\n"
        "from fym.console import QuietConsole\n"
        "class Slow(QuietConsole):\n"
        "    def step(self, *row):\n        super().step(*row)\n        time.sleep(0.01)\n"
        "tune.train(load_config(sys.argv[1]), Path(sys.argv[2]), console=Slow())\n"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    # The planted head map: what a resumed run finds is what it uses.
    checkpoints = folder / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, InterruptingConsole("spatial", 1))
    arguments = [sys.executable, str(script), str(tmp_path / "config.toml"), str(folder)]
    process = subprocess.Popen([*arguments, str(torch.get_num_threads())], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while (found := load_checkpoint(checkpoints)) is None or found.record["stage"] != "temporal":
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert load_checkpoint(checkpoints).record["stage"] == "temporal"
    run(config, folder)
    assert_same(uninterrupted, folder)


@pytest.mark.parametrize("stage", ["spatial", "temporal"])
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    configure, planted, tmp_path, stage
):
    config = configure(**{f"{stage}__learning_rate": 1e30, "tune__checkpoint_every": 1})
    with pytest.raises(
        UserError, match=rf"not a number at {stage} step 2: .*\({stage} step 1\).*learning_rate"
    ):
        run(config, tmp_path)
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept.record["stage"] == stage and kept.record["step"] == 1
    assert all(t.isfinite().all() for t in kept.tensors.values() if t.is_floating_point())


def test_a_finished_run_does_nothing_again(uninterrupted, configure, monkeypatch):
    before = (uninterrupted / "motion.safetensors").read_bytes()
    monkeypatch.setattr(tune, "run_stage", None)
    run(configure(), uninterrupted)
    assert (uninterrupted / "motion.safetensors").read_bytes() == before


def test_another_run_in_the_directory_is_refused_with_what_differs(uninterrupted, configure):
    with pytest.raises(
        UserError, match=r"(?s)another run.*temporal\.rank: 2 there, 3 now.*tune\.seed.*--fresh"
    ):
        run(configure(temporal__rank=3, tune__seed=5), uninterrupted)
    run(configure(tune__log_every=3, generate__seeds=[0, 7]), uninterrupted)
    assert len(json.loads((uninterrupted / "samples" / "samples.json").read_text())) == 2


def test_another_clip_under_the_same_name_is_noticed(configure, planted, tmp_path, moving_square):
    path = tmp_path / "clip.mp4"
    write_clip(path, moving_square, 8)
    config = configure(clip__path=str(path))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", InterruptingConsole("spatial", 1))
    write_clip(path, moving_square.flip(0), 8)
    with pytest.raises(UserError, match="another clip"):
        run(config, tmp_path / "run")


def test_a_sample_that_a_stop_left_out_is_made_when_the_run_goes_on(configure, planted, tmp_path):
    """The checkpoint of a step comes before its sample; in between a run may be stopped or killed."""
    config = configure(tune__sample_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, InterruptingConsole("temporal", 2))
    assert not (tmp_path / "samples").exists()
    run(config, tmp_path)
    rows = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [row["step"] for row in rows] == [2, 4, STEPS]
