"""Several processes do one run: same result, one writer, any number of them goes on, a lost one is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fym
from benchmarks.faults import contents
from fym import cli, stage, tune
from fym.checkpoint import load_checkpoint
from fym.config_file import load_config, to_toml
from fym.console import QuietConsole
from fym.errors import UserError
from fym.families import load_family
from fym.fit import fitting
from fym.ranks import ALONE, Ranks, check_device
from fym.video import write_clip

STEPS = 3  # of each stage
WORKER = """
import os, sys
from pathlib import Path
import torch
from fym import tune
from fym.adapters import HeadLora
from fym.config_file import load_config
from fym.console import QuietConsole
from fym.families import load_family
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

load, families = tune._load, []

def loaded(config):
    families.append(load(config))
    return families[-1]

import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
tune._load = loaded
for name in ("two", "begun", "stopped", "bands", "sharded"):
    console = Stop() if name == "stopped" else QuietConsole()
    try:
        tune.train(load_config(place / f"{name}.toml"), place / name, console=console)
        assert name != "stopped"
    except KeyboardInterrupt:
        assert name == "stopped"
matrices = [p for block in families[-1].blocks()[0] for p in block.parameters() if p.ndim == 2]
assert 2 * sum(p.to_local().numel() for p in matrices) == sum(p.numel() for p in matrices) > 0

def results(family):
    # of a pass and its gradients
    sizes = dict(num_heads=family.num_heads, head_dim=family.head_dim, targets=family.targets)
    adapter = HeadLora([[0]] * family.num_layers, **sizes, rank=2, alpha=2)
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = torch.randn(1, family.transformer.config.in_channels, 5, 4, 6)
    with family.attention(adapters=[(adapter, 1.0)]):
        predicted = family.predict(latents, torch.tensor([500.0]), family.encode_prompts(["a"]))
        predicted.square().mean().backward()
    return [predicted, *(parameter.grad for parameter in adapter.parameters())]

def at_all_levels(family):
    found = []
    for family.recompute in ("none", "block"):
        found += results(family)
    return found

for folder in sys.argv[3:]:
    family = load_family(folder, device="cpu")
    plain = at_all_levels(family)
    family.shard(ranks.mesh(family.device))
    assert all(map(torch.equal, at_all_levels(family), plain)) and all(t.any() for t in plain), folder
if ranks.rank == 1:
    assert not [path for path in written if path.startswith(str(place))], written
leave()
"""


@pytest.fixture(scope="module")
def configure(tiny_wan, tmp_path_factory, panned):
    path = tmp_path_factory.mktemp("clip") / "panned.mp4"
    write_clip(path, panned, 8)

    def make(**changes):
        settings = {
            "model.path": str(tiny_wan(heads=2)),
            "clip.path": str(path),
            "clip.prompt": "an orange square",
            "heads.grouping": "all",
            "heads.seeds": 1,
            "tune.scenes": ["a meadow"],
            "temporal.sparse_frames": 9,
            "temporal.picking": "phase",
            "temporal.debias": True,
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


def in_turn(family, of, generator, sample, control, ranks):
    """What two processes do, by one, the second share after the first: their gradients add up."""
    before, figures = generator.get_state(), []
    for number in range(2):
        generator.set_state(before)
        figures.append(BACKWARD(family, of, generator, sample, control, Ranks(number, 2)))
    return tuple(map(sum, zip(*figures, strict=True)))


BACKWARD = stage._backward
ONE_SAMPLE = {"spatial.batch_size": 1, "temporal.batch_size": 1, "temporal.whole_share": 1 / STEPS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, configure, tiny_model):
    """Folder of the runs: `one` by one process, `turns` by one that takes two shares in turn, `two` by two
    processes, `begun` by one in turn and then by two that share the weights, `stopped` the other way round;
    `whole` by one and `bands` by two processes, with one sample a step, and `sharded` by two that
    share the weights as well. The two processes also compare other families with and without that."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fym.report.write_report", lambda run_dir: run_dir / "report.html")
        tune.train(configure(), place / "one", console=QuietConsole())
        tune.train(configure(**ONE_SAMPLE), place / "whole", console=QuietConsole())
        patch.setattr(stage, "_backward", in_turn)
        tune.train(configure(), place / "turns", console=QuietConsole())
        with pytest.raises(KeyboardInterrupt):
            tune.train(configure(), place / "begun", console=Interrupting("temporal", 1))
        for name in ("two", "begun", "stopped", "bands", "sharded"):
            changes = ONE_SAMPLE if name in ("bands", "sharded") else {}
            config = configure(**changes, model__shard=name in ("begun", "stopped", "sharded"))
            (place / f"{name}.toml").write_text(to_toml(config))
        two_processes(place, tiny_model("hunyuan_video"), tiny_model("cogvideox-5b"))
        assert not (place / "stopped" / "motion.safetensors").exists()
        tune.train(configure(), place / "stopped", console=QuietConsole())
    return place


def two_processes(place, *models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        env = environment() | {k: str(v) for k, v in {**known, "MASTER_PORT": port}.items()}
        command = [sys.executable, "-c", WORKER, str(place), str(torch.get_num_threads()), *map(str, models)]
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
    """Also where their number and `model.shard` change in between; Ctrl-C on any of them stops all."""
    ours, theirs = adapters_of(runs / "turns"), adapters_of(runs / name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(("alone", "together"), [("one", "two"), ("whole", "bands")])
def test_gradients_and_motion_file_equal_those_of_one_process_within_rounding(runs, alone, together):
    """The first moments after a stage's first step are its gradients. AdamW takes an entry whose gradient is
    rounding alone for one like any other, so that the files agree less than gradients do."""
    for name, bound in (("0-spatial-000001", 1e-5), ("1-temporal-000001", 1e-3)):
        one, two = (load_file(runs / r / "checkpoints" / f"{name}.safetensors") for r in (alone, together))
        moments = [key for key in one if key.endswith("exp_avg")]
        gradients = [torch.cat([each[key].flatten() for key in moments]) for each in (one, two)]
        assert gradients[0].norm() > 0 and relative(*gradients) < bound, name
    one, two = adapters_of(runs / alone), adapters_of(runs / together)
    pairs = [(key, key.replace("lora_A", "lora_B")) for key in one if "lora_A" in key]
    assert pairs and all(relative(one[b] @ one[a], two[b] @ two[a]) < 1e-2 for a, b in pairs)


def test_weights_that_are_shared_out_change_nothing(runs):
    """Every file of the run: heads, checkpoints, motion file, sample clips."""
    ours, theirs = (contents(runs / name) for name in ("bands", "sharded"))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    assert differing == ["config.toml"] and any(name.endswith(".mp4") for name in ours)


def test_what_cannot_be_shared_out_is_refused(tiny_model, configure):
    family = load_family(str(tiny_model("wan-2.2-14b")), device="cpu")
    for refused in (
        lambda: family.shard(None),
        lambda: fitting(family, configure(model__shard=True), [], None, 2),  # the plan says so already
    ):
        with pytest.raises(UserError, match=r"cannot be shared out: it is two transformers.*model\.shard"):
            refused()
    with pytest.raises(UserError, match=r"model\.shard = true: quantised or"):
        configure(model__shard=True, model__quantise="int8")


def relative(ours, theirs):
    return float((ours - theirs).norm() / ours.norm())


@pytest.mark.parametrize(("alone", "together"), [("one", "two"), ("whole", "bands")])
def test_the_log_is_that_of_one_process(runs, alone, together):
    one, two = ((runs / name / "train.jsonl").read_text().splitlines() for name in (alone, together))
    assert len(one) == len(two) == 2 * STEPS
    for a, b in zip(one, two, strict=True):
        a, b = json.loads(a), json.loads(b)
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        for name in ("loss", "loss_flow", "loss_motion", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)


@pytest.mark.parametrize("shard", [False, True])
def test_a_lost_process_ends_the_run_with_a_sentence_and_a_checkpoint(configure, tmp_path, shard):
    """torchrun and the command line; the second process is killed while both train."""
    config = configure(temporal__steps=100_000, tune__keep=3, model__shard=shard)
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
    assert errors.count("fym: A process of this run was lost") == 1 and "Run the same command" in errors, (
        errors
    )
    assert said.count("\nHeads\n") == 1
    assert load_checkpoint(folder / "checkpoints").record["stage"] == "temporal"


def test_a_signal_does_not_hide_why_a_run_ends(configure, tmp_path, monkeypatch, capsys):
    """torchrun sends SIGTERM as soon as it sees that a process is lost."""

    def train(*_, **__):
        try:
            raise UserError("A process of this run was lost", "it no longer answers", "Run it again")
        finally:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tune, "train", train)
    (tmp_path / "config.toml").write_text(to_toml(configure()))
    assert cli.main(["train", "--config", str(tmp_path / "config.toml"), "-o", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("fym: A process of this run was lost")


def children(pid):
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def environment_of(pid):
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_shares_are_all_samples_once():
    """Whole samples where there are enough, else as few bands as give every process work."""
    for size in (1, 2, 3, 4, 6):
        for samples in (1, 2, 4, 7):
            done, counts = [], set()
            for rank in range(size):
                mine, band = Ranks(rank, size).share("spatial", samples, lambda count: 2)
                bands = 1 if band is None else band.count
                done += [(index, band.index if band else 0) for index in range(samples)[mine]]
                counts.add(bands)
            [bands] = counts
            assert sorted(done) == [(index, part) for index in range(samples) for part in range(bands)]
            assert (bands == 1) == (samples >= size)


def test_too_few_samples_are_refused_with_what_to_set(tiny_family):
    """The tiny model has 3 heads, and 2 x 3 tokens in a frame."""
    latents = torch.empty(16, 5, 4, 6)
    assert [tiny_family.band_axis(latents, bands) for bands in (2, 3)] == [None, 2]
    axis = partial(tiny_family.band_axis, latents)
    assert Ranks(0, 3).bands("spatial", 1, axis) == 3 and Ranks(0, 6).bands("spatial", 2, axis) == 3
    with pytest.raises(UserError, match=r"2 processes are too many for the spatial.*spatial\.batch_size"):
        Ranks(0, 2).bands("spatial", 1, axis)


def test_one_process_exchanges_nothing():
    ALONE.wait()
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None and ALONE.sum([1.5, 2]) == [1.5, 2] and ALONE.most(3) == 3


def test_a_gpu_named_by_number_is_refused(configure, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="cuda:0 is one GPU and 2 processes"):
        check_device(configure(model__device="cuda:0"), Ranks(0, 2))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"Process 1 .* has no GPU.*--nproc-per-node 1"):
        check_device(configure(model__device="cuda"), Ranks(1, 2))
