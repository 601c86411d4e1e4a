"""Memory or disk that runs out: whatever library says it, the user hears which settings save how much."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from fym import advice, cli, files
from fym.checkpoint import load_checkpoint
from fym.config_file import load_config
from fym.errors import UserError
from fym.runlog import StepLog
from fym.video import write_clip

REAL = 1 << 50  # bytes that no machine gives


def huge_torch():
    torch.empty(REAL, dtype=torch.uint8)


def huge_numpy():
    np.ones(REAL, np.uint8)


def huge_python():
    bytearray(REAL)


def huge_picture():
    import cv2

    cv2.resize(np.zeros((2, 2, 3), np.uint8), (1 << 20, 1 << 20))


def error_of(work) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("there was memory")


class TestMemory:
    @pytest.mark.parametrize("work", [huge_torch, huge_numpy, huge_python, huge_picture])
    def test_every_library_that_has_none_left_is_understood(self, work):
        said = str(advice.explain(error_of(work)))
        assert said.startswith("Out of memory: ") and "--set model.vae=tiled" in said

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "2.50 GiB"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "no more"),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), "no more"),
        ],
    )
    def test_a_gpu_too(self, error, words):
        assert words in str(advice.explain(error))

    def test_other_errors_are_left_alone(self):
        for error in (RuntimeError("oh"), OSError(errno.EACCES, "Permission denied"), ValueError()):
            assert advice.explain(error) is None

    def test_what_each_setting_saves_is_computed(self, tmp_path, tiny_wan, moving_square):
        write_clip(tmp_path / "clip.mp4", moving_square, 8)
        settings = {"model.path": str(tiny_wan()), "clip.path": str(tmp_path / "clip.mp4")}
        settings |= {"temporal.sparse_frames": 17, "temporal.batch_size": 64, "clip.prompt": "a"}
        config = load_config(None, settings)
        tensors = [torch.zeros(10)]

        def work(mine) -> None:
            raise MemoryError

        with pytest.raises(UserError) as caught, advice.advising(config, tmp_path):
            work(tensors)
        said = str(caught.value)
        assert "tune.recompute=block: " in said and " instead of " in said and "as computed" in said
        assert "temporal.batch_size=1" in said and "the run goes on at the first step" in said
        frames = [frame for frame, _ in traceback.walk_tb(caught.value.__cause__.__traceback__)]
        assert frames[-1].f_code.co_name == "work" and not frames[-1].f_locals, "it would hold tensors"

    def test_advice_without_memory_to_compute_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(advice, "_computed", lambda config: huge_torch())
        with (
            pytest.raises(UserError, match=r"(?s)tune\.recompute=block.*--dry-run"),
            advice.advising(load_config(), tmp_path),
        ):
            huge_torch()


class TestDisk:
    @pytest.mark.parametrize("number", files.DISK_FULL)
    def test_a_file_that_does_not_fit(self, tmp_path, monkeypatch, number):
        def full(handle):
            raise OSError(number, os.strerror(number))

        (tmp_path / "x").write_text("old")
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(
            files.DiskFullError, match=f"{os.strerror(number)}, it takes 2.00 MB. Free some space"
        ):
            files.write_file(tmp_path / "x", bytes(2_000_000))
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"

    def test_the_log_too(self, tmp_path):
        """/dev/full is a disk without room."""
        log = StepLog(tmp_path / "train.jsonl")
        refused = pytest.raises(files.DiskFullError, match=r"train\.jsonl cannot be written: No space left")
        # Closing it fails as well.
        with contextlib.suppress(OSError), open("/dev/full", "a") as log._file, refused:
            log.write({"stage": "spatial", "step": 1})

    def test_other_libraries_too(self):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/y")
        assert str(advice.explain(error)) == "/tmp/y cannot be written: the disk is full. Free some space."


@pytest.fixture
def arguments(tiny_wan, moving_square, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    write_clip("square.mp4", moving_square, 8)
    given = ["train", "square.mp4", "--prompt", "a square moves", "--model", str(tiny_wan()), "-o", "run"]
    given += ["--sparse-frames", "9", "--spatial-steps", "2", "--temporal-steps", "3", "--rule", "topk"]
    return [*given, "--set", "heads.topk=3", "--set", "tune.checkpoint_every=1", "--set", "generate.steps=1"]


def test_a_disk_that_fills_up_in_the_middle(arguments, monkeypatch, capsys):
    """The run says what saves how much, keeps its last checkpoint, leaves no half of a file, and goes on."""
    real, written = os.fsync, []

    def fsync(handle):
        written.append(os.readlink(f"/proc/self/fd/{handle}"))
        if "1-temporal-000002" in written[-1] and "/run/" in written[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "1-temporal-000002.safetensors cannot be written" in said
    for part in ("--set tune.keep=1: ", "rm -r run/cache: ", "goes on after step 1 of the temporal stage."):
        assert part in said
    assert load_checkpoint(Path("run/checkpoints")).name == "1-temporal-000001"
    assert not list(Path("run").rglob(".*"))
    assert cli.main(arguments) == 0 and Path("run/motion.safetensors").exists()


GROWING = """
import contextlib, io, json, os, subprocess, sys
from pathlib import Path
from benchmarks.faults import content, contents
from fym import cli

disk, *arguments = sys.argv[1:]
assert cli.main(arguments) == 0
wanted = contents(Path("run"))
os.chdir(disk)
kib, refused = 16, []
while True:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(arguments)
    if code == 0:
        break
    refused.append([code, said.getvalue()])
    for path in Path("run").rglob("*"):
        name = str(path.relative_to("run"))
        assert not path.name.startswith("."), name
        if path.suffix in (".safetensors", ".toml", ".png", ".mp4"):
            assert content(path) == wanted[name], name
    kib = kib * 4 // 3
now = contents(Path("run"))
unequal = sorted(name for name in wanted.keys() | now.keys() if wanted.get(name) != now.get(name))
print(json.dumps([refused, unequal]))
"""


def test_a_real_disk_that_is_full_again_and_again(arguments, tmp_path):
    """A file system of memory, in a namespace of its own, that grows each time the run finds it full: every
    time one message and only whole files, and at the end the run that always had room, bit for bit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mounted += ['mount -t tmpfs -o size=16k none "$0" && exec "$@"', str(disk)]
    try:
        probe = subprocess.run([*mounted, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare on this system")
    if probe.returncode:
        pytest.skip(f"this system lets nobody mount a tmpfs of his own: {probe.stderr.strip()}")
    arguments[1] = str(tmp_path / arguments[1])
    command = [*mounted, sys.executable, "-c", GROWING, str(disk), *arguments, "--set", "tune.keep=100"]
    here = str(Path(__file__).parents[2])  # the benchmarks are not installed
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": here})
    assert done.returncode == 0, done.stderr
    refused, unequal = json.loads(done.stdout.splitlines()[-1])
    assert not unequal
    assert len({said.split(" cannot be written")[0] for _, said in refused}) >= 5, "moments of the run"
    for code, said in refused:
        assert code == 2 and said.startswith("fym: run") and said.count("fym: ") == 1
        assert "No space left on device" in said and "room on the disk" in said
        assert "Then the same command goes on" in said


LIMITED = """
import resource, sys
import torch
from fym import cli
from fym.console import Console

class Greedy(Console):
    def step(self, stage, step, row):
        super().step(stage, step, row)
        if (stage, step) == ("temporal", 2):
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
            torch.empty(1 << 30)

cli.Console = Greedy
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_process_with_too_little_memory(arguments):
    """A limit of the system on a real run: the allocator's own error, and advice that can be computed."""
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "Out of memory, 4.29 GB more were asked for" in done.stderr
    assert "--sparse-frames: in proportion" in done.stderr and "about a third" not in done.stderr
    assert "after step 1 of the temporal stage" in done.stderr
