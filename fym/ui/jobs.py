"""One `fym` command at work in a run directory, as a process of its own.

job.json names the process and job.log holds what it prints, so whoever looks at the directory later finds it
again: another page, or a server started anew. Stopping is Ctrl-C, which leaves a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fym.errors import UserError
from fym.files import write_file

STOPPED = "fym: stopped"  # how the command line's last line begins after Ctrl-C


@dataclass(frozen=True)
class Job:
    """A command that was started; `created` is its process's start, since a number alone is used again."""

    kind: str
    pid: int
    created: float

    @property
    def running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 0.5
            return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False


def start(folder: Path, kind: str, arguments: Sequence[str]) -> Job:
    """Runs `fym kind arguments...`, its output in job.log; UserError while another job is at work here."""
    before = current(folder)
    if before is not None and before.running:
        raise UserError(f"{folder.name} is busy", f"{before.kind} is at work", "Wait for it or stop it")
    command = [sys.executable, "-u", "-m", "fym", kind, *arguments]
    with (folder / "job.log").open("wb") as log:
        # A session of its own: Ctrl-C at the server's terminal must not reach it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:  # over already
        created = 0.0
    job = Job(kind, process.pid, created)
    write_file(folder / "job.json", json.dumps(asdict(job)) + "\n")
    return job


def current(folder: Path) -> Job | None:
    """The job that was started last, at work or over."""
    try:
        row = json.loads((folder / "job.json").read_text("utf-8"))
        return Job(str(row["kind"]), int(row["pid"]), float(row["created"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stop(folder: Path) -> None:
    """Ctrl-C for the job at work: it ends after the step it is in. Does nothing when none is."""
    job = current(folder)
    if job is not None and job.running:
        os.kill(job.pid, signal.SIGINT)


def last_words(folder: Path) -> str:
    """The last line printed, or the whole message where a UserError took several."""
    try:
        lines = (folder / "job.log").read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    said = [number for number, line in enumerate(lines) if line.startswith("fym: ")]
    return "\n".join(lines[said[-1] :]) if said else (lines[-1].strip() if lines else "")
