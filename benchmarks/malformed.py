"""Damaged clips, configurations and motion files, each given to the command that reads it.

Every input goes through `fym` in a process of its own, with a limit on its memory, and ends in one of four
ways: read (exit code 0), refused (2, one message, nothing left behind), traceback (any other code, or a
traceback in the output), hang. `partial`: the input was cut off and read, or a refused command left a file.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.damage import CUT_OFF, damaged
from benchmarks.damage import KINDS as DAMAGE
from fym.config import OPTIONS
from fym.config_file import default_config, to_toml
from fym.embedded import scenes
from fym.video import write_clip

NAMES = {
    "mp4": "clip.mp4",
    "gif": "clip.gif",
    "configuration file": "fym.toml",
    "motion file": "motion.safetensors",
}
KINDS = (*NAMES, "odd value of an option")
SHARES = (0.3, 0.1, 0.2, 0.3, 0.1)
PATIENCE = 300  # seconds for a command that takes some, on a machine that may be busy
MEMORY = 8 << 30  # bytes of address space
ODD = (
    "-1", "0", "1", "2", "1e400", "-inf", "nan", "99999999999999999999", "65536", "1000000007", "[]", "[[1]]",
    "{}", "true", "''", "'x'", "1979-05-27", "'\\u0000'", "0.5", "[1, 'a']", "=", "'../../x'",
)  # fmt: skip


def malformed(folder: Path, count: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each of `count` inputs."""
    whole = _whole_files(folder / "whole")
    rows = []
    for kind, share in zip(KINDS, SHARES, strict=True):
        for number in range(round(share * count)):
            rows.append({"kind": kind, "number": number, **_try(folder / "tried", kind, number, whole)})
            say(f"{kind} {number}: {rows[-1]['end']}, {rows[-1]['said']}")
    return rows


def _whole_files(folder: Path) -> dict[str, bytes]:
    """The files that are damaged; the motion file is one of a fresh adapter for the embedded model."""
    process = multiprocessing.get_context("fork").Process(target=_write_whole, args=(folder,))
    process.start()
    process.join()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write_whole(folder: Path) -> None:
    import torch

    from fym.adapters import HeadLora
    from fym.motion_file import save_motion_file

    frames = scenes.render(scenes.unseen_scene("bounce"))[:13]
    for kind in ("mp4", "gif"):
        write_clip(folder / f"clip.{kind}", frames, scenes.FPS)
    (folder / "fym.toml").write_text(to_toml(default_config()))
    temporal, spatial = (
        HeadLora(heads, num_heads=2, head_dim=16, rank=4, alpha=4.0, generator=torch.Generator())
        for heads in ([[0], [0, 1]], [[1], []])
    )
    about = {"model_id": "m", "model_hash": "h" * 64, "caption": "a ball", "family": "wan"}
    save_motion_file(folder / "motion.safetensors", temporal, spatial, about)


def _try(folder: Path, kind: str, number: int, whole: dict[str, bytes]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    clip, output, log = folder / "clip.mp4", folder / "out", folder / "log"
    clip.write_bytes(whole["clip.mp4"])
    (folder / "fym.toml").write_bytes(whole["fym.toml"])
    train = ["train", str(clip), "--prompt", "a ball", "-o", str(output), "--dry-run", "--sparse-frames", "9"]
    command = train
    if kind in NAMES:
        bad = folder / NAMES[kind]
        bad.write_bytes(damaged(whole[bad.name], number))
    if kind == "gif":
        command[1] = str(bad)
    elif kind == "configuration file":
        command += ["--config", str(bad)]
    elif kind == "motion file":
        command = ["convert", str(bad), "--to", "diffusers", "-o", str(output)]
    elif kind == "odd value of an option":
        draw = random.Random(number)
        command += ["--set", f"{draw.choice(list(OPTIONS))}={draw.choice(ODD)}"]
    before = {path.name for path in folder.iterdir()} | {"log"}
    process = multiprocessing.get_context("fork").Process(target=_limited, args=(command, folder, log))
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    process.kill()
    said = log.read_text("utf-8", errors="replace") if log.exists() else ""
    left = sorted({path.name for path in folder.iterdir()} - before)
    if code is None:
        end = "hang"
    elif "Traceback" in said or code not in (0, 2):
        end = "traceback"
    else:
        end = "read" if code == 0 else "refused"
    cut_off = number % DAMAGE == CUT_OFF and kind in ("mp4", "gif", "motion file")
    return {
        "end": end,
        "partial": bool((cut_off and end == "read") or (end == "refused" and left)),
        "said": _message(said, folder) if end != "read" else "",
    }


def _limited(command: list[str], folder: Path, log: Path) -> None:
    """The command in its own folder, its output in the log."""
    from fym import cli

    os.chdir(folder)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os._exit(cli.main(command))


def _message(said: str, folder: Path) -> str:
    """What was said last, without the temporary folder's name."""
    start = max(said.rfind("fym: "), 0)
    return " ".join(said[start:].replace(f"{folder}/", "").split())[:300]
