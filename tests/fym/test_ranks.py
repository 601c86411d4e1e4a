"""Several processes do one run: same result, one writer, any number of them goes on, a lost one is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fym
from fym import stage, tune
from fym.checkpoint import load_checkpoint
from fym.config import load_config, to_toml
from fym.console import QuietConsole
from fym.errors import UserError
from fym.ranks import ALONE, Ranks, check_shares
from fym.video import write_clip

STEPS = 3  # of each stage
WORKER = """
import os, sys
from pathlib import Path
import torch
from fym import tune
from fym.config import load_config
from fym.console import QuietConsole
from fym.ranks import launched, leave

torch.set_num_threads(int(sys.argv[2]))
ranks, place = launched(), Path(sys.argv[1])
written = set()

def notice(event, values):
    if event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR):
        written.add(str(values[0]))
    if event in ("os.rename", "os.remove", "os.mkdir"):
        written.add(str(values[0]))

sys.addaudithook(notice)

class Stop(QuietConsole):
    # Ctrl-C on the second process alone, in the second step of the last stage
    def step(self, stage, step, row):
        super().step(stage, step, row)
        if ranks.rank == 1 and (stage, step) == ("temporal", 2):
            import signal
            signal.raise_signal(signal.SIGINT)

import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for name, console in (("two", QuietConsole()), ("begun", QuietConsole()), ("stopped", Stop())):
    try:
        tune.train(load_config(place / f"{name}.toml"), place / name, console=console)
        assert name != "stopped"
    except KeyboardInterrupt:
        assert name == "stopped"
if ranks.rank == 1:
    assert not [path for path in written if path.startswith(str(place))], written
leave()
"""


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory, moving_square):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, moving_square, 8)
    return path


@pytest.fixture(scope="module")
def configure(tiny_wan, clip_path):
    def make(**changes):
        settings = {
            "model.path": str(tiny_wan()),
            "clip.path": str(clip_path),
            "clip.prompt": "a square",
            "heads.grouping": "all",
            "heads.seeds": 1,
            "temporal.sparse_frames": 9,
            "temporal.picking": "phase",
            "temporal.debias": True,
            "temporal.whole_share": 1 / STEPS,
            "tune.checkpoint_every": 1,
            "tune.keep": 100,
            "generate.steps": 1,
        }
        for name in ("spatial", "temporal"):
            settings |= {f"{name}.steps": STEPS, f"{name}.rank": 2, f"{name}.learning_rate": 1e-2}
            settings |= {f"{name}.batch_size": 3}
        return load_config(None, settings | {k.replace("__", "."): v for k, v in changes.items()})

    return make


class Interrupting(QuietConsole):
    """Presses Ctrl-C after one step of a stage."""

    def __init__(self, stage, step):
        super().__init__()
        self.where = (stage, step)

    def step(self, stage, step, row):
        super().step(stage, step, row)
        if (stage, step) == self.where:
            signal.raise_signal(signal.SIGINT)


def in_turn(family, of, generator, sample, ranks):
    """What two processes do, by one, the second share after the first: their gradients add up."""
    before, figures = generator.get_state(), []
    for number in range(2):
        generator.set_state(before)
        figures.append(BACKWARD(family, of, generator, sample, Ranks(number, 2)))
    return tuple(map(sum, zip(*figures, strict=True)))


BACKWARD = stage._backward


@pytest.fixture(scope="module")
def runs(tmp_path_factory, configure):
    """Folder of the runs: `one` by one process, `turns` by one that takes two shares in turn, `two` by two
    processes, `begun` by one in turn and then by two, `stopped` by two and then by one in turn."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fym.report.write_report", lambda run_dir: run_dir / "report.html")
        tune.train(configure(), place / "one", console=QuietConsole())
        patch.setattr(stage, "_backward", in_turn)
        tune.train(configure(), place / "turns", console=QuietConsole())
        with pytest.raises(KeyboardInterrupt):
            tune.train(configure(), place / "begun", console=Interrupting("temporal", 1))
        for name in ("two", "begun", "stopped"):
            (place / f"{name}.toml").write_text(to_toml(configure()))
        two_processes(place)
        assert not (place / "stopped" / "motion.safetensors").exists()
        tune.train(configure(), place / "stopped", console=QuietConsole())
    return place


def two_processes(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        env = environment() | {k: str(v) for k, v in {**known, "MASTER_PORT": port}.items()}
        command = [sys.executable, "-c", WORKER, str(place), str(torch.get_num_threads())]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE))
    try:
        for process in processes:
            errors = process.communicate()[1]
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()


def environment():
    return os.environ | {"PYTHONPATH": str(Path(fym.__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}


def adapters_of(folder):
    return load_file(folder / "motion.safetensors") | {
        f"spatial {name}": value for name, value in load_file(folder / "spatial.safetensors").items()
    }


@pytest.mark.parametrize("name", ["two", "begun", "stopped"])
def test_processes_equal_one_that_takes_their_shares_in_turn_bit_for_bit(runs, name):
    """Also where the number of processes changes in between; Ctrl-C on any of them stops all."""
    ours, theirs = adapters_of(runs / "turns"), adapters_of(runs / name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_gradients_and_motion_file_equal_those_of_one_process_within_rounding(runs):
    """The first moments after a stage's first step are its gradients. AdamW takes an entry whose gradient is
    rounding alone for one like any other, so that the files agree less than gradients do."""
    for name, bound in (("0-spatial-000001", 1e-5), ("1-temporal-000001", 1e-3)):
        one, two = (load_file(runs / r / "checkpoints" / f"{name}.safetensors") for r in ("one", "two"))
        moments = [key for key in one if key.endswith("exp_avg")]
        gradients = [torch.cat([each[key].flatten() for key in moments]) for each in (one, two)]
        assert gradients[0].norm() > 0 and relative(*gradients) < bound, name
    one, two = adapters_of(runs / "one"), adapters_of(runs / "two")
    pairs = [(key, key.replace("lora_A", "lora_B")) for key in one if "lora_A" in key]
    assert pairs and all(relative(one[b] @ one[a], two[b] @ two[a]) < 1e-2 for a, b in pairs)


def relative(ours, theirs):
    return float((ours - theirs).norm() / ours.norm())


def test_the_log_is_that_of_one_process(runs):
    one, two = ((runs / name / "train.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert len(one) == len(two) == 2 * STEPS
    for a, b in zip(one, two, strict=True):
        a, b = json.loads(a), json.loads(b)
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        for name in ("loss", "loss_flow", "loss_motion", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_a_lost_process_ends_the_run_with_a_sentence_and_a_checkpoint(configure, tmp_path):
    """torchrun and the command line; the second process is killed while both train."""
    config = configure(temporal__steps=100_000, temporal__whole_share=0.0, tune__keep=3)
    (tmp_path / "config.toml").write_text(to_toml(config))
    folder = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "fym", "train", "--config", str(tmp_path / "config.toml"), "-o", str(folder)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (folder / "checkpoints" / "1-temporal-000003.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    [second] = [child for child in children(process.pid) if environment_of(child).get("RANK") == "1"]
    os.kill(second, signal.SIGKILL)
    said, errors = process.communicate()
    assert process.returncode == 1 and "Traceback" not in errors.partition("fym: ")[0]
    assert errors.count("fym: A process of this run was lost") == 1 and "Run the same command" in errors
    assert said.count("\nHeads\n") == 1
    assert load_checkpoint(folder / "checkpoints").record["stage"] == "temporal"


def children(pid):
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def environment_of(pid):
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_shares_are_all_samples_once():
    for size in (1, 2, 3, 5):
        for samples in (1, 2, 4, 7):
            shares = [list(range(samples))[Ranks(rank, size).share(samples)] for rank in range(size)]
            assert [index for share in shares for index in share] == list(range(samples))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_exchanges_nothing():
    ALONE.wait()
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None and ALONE.sum([1.5, 2]) == [1.5, 2] and ALONE.most(3) == 3


def test_too_few_samples_are_refused_with_what_to_set(configure):
    check_shares(configure(), Ranks(0, 3))
    with pytest.raises(UserError, match=r"4 processes.*--set spatial\.batch_size=4 --set temporal\.batch"):
        check_shares(configure(), Ranks(0, 4))
    check_shares(configure(spatial__steps=0, temporal__batch_size=4), Ranks(0, 4))


def test_a_gpu_named_by_number_is_refused(configure, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="cuda:0 is one GPU and 2 processes"):
        check_shares(configure(model__device="cuda:0"), Ranks(0, 2))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"Process 1 .* has no GPU.*--nproc-per-node 1"):
        check_shares(configure(model__device="cuda"), Ranks(1, 2))
