"""What breaks a run and what broken input does to it: `python -m benchmarks.faults`.

1. `--kills` runs of the embedded model on few frames and steps are killed with SIGKILL: at random times, and
   in the middle of writing checkpoints, cache, results and records. The same command then goes on, and every
   file must be the uninterrupted run's, bit for bit.
2. `--inputs` damaged clips, configurations and motion files are given to the commands that read them: each
   must be read or refused with one message, leaving nothing (benchmarks/malformed.py).

Writes benchmarks/results/faults.json and prints the tables of docs/faults.md. Minutes on one core: the runs
are forks of a process that has everything imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.malformed import KINDS, malformed
from benchmarks.saboteur import POINTS, Saboteur
from fym.embedded import scenes
from fym.families import load_family
from fym.files import write_file
from fym.machine import cpu_name
from fym.video import write_clip

FILE = Path(__file__).parent / "results" / "faults.json"
PATIENCE = 600  # seconds for a run that takes some
SETTINGS = {
    "clip.frames": 9,
    "heads.seeds": 1,
    "spatial.steps": 2,
    "temporal.steps": 4,
    "temporal.sparse_frames": 5,
    "temporal.batch_size": 1,
    "tune.checkpoint_every": 1,
    "tune.sample_every": 2,
    "generate.steps": 1,
    "generate.frames": 9,
}
# Moments, as often as they stand here: any time of the run, or within the writing of such a file.
TIME, CHECKPOINT, CACHE, RESULT, RECORD = "any time", "checkpoint", "cache", "result", "record"
MOMENTS = (TIME, CHECKPOINT, TIME, RESULT, TIME, CACHE, CHECKPOINT, TIME, RESULT, RECORD)
UNEQUAL = ("seconds", "rss_mib", "gpu_mib")  # of a row of train.jsonl


def run(arguments: Sequence[str], log: Path, saboteur: Saboteur | None = None) -> None:
    """A command of fym, in a process of its own, and what it wrote in LOG.writes."""
    from fym import cli, files

    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    watched = saboteur or Saboteur()
    files.os = watched  # type: ignore[assignment]
    code = cli.main(list(arguments))
    Path(f"{log}.writes").write_text("\n".join(watched.written))
    os._exit(code)


def start(target: Callable[..., None], *given: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=given)
    process.start()
    return process


def moment_of(path: str, run_dir: Path) -> str:
    """Which of MOMENTS the writing of a file belongs to; none if it is not in the run's directory."""
    if not Path(path).is_relative_to(run_dir):
        return ""
    for part, moment in (("/checkpoints/", CHECKPOINT), ("/cache/", CACHE), ("/samples/", RESULT)):
        if part in path:
            return moment
    return RESULT if any(name in path for name in (".motion.", ".spatial.", ".report.")) else RECORD


def reached(run_dir: Path) -> str:
    """The phase in which a killed run was."""
    for name, phase in (
        ("report.html", "over"),
        ("motion.safetensors", "export"),
        ("checkpoints/latest", "tuning"),
        ("reference.mp4", "classification"),
        ("config.toml", "cache"),
    ):
        if (run_dir / name).exists():
            return phase
    return "start"


def contents(run_dir: Path) -> dict[str, Any]:
    """Every file of a run by name; of those that hold times, what does not depend on them. A temporary file
    that was left behind is named like none of an uninterrupted run."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.is_file() and name not in ("timings.json", "environment.json"):
            found[name] = content(path)
    return found


def content(path: Path) -> Any:
    """Of one file of a run."""
    if path.name == "report.html":
        return path.stat().st_size > 0
    if path.name == "train.jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{k: v for k, v in row.items() if k not in UNEQUAL} for row in rows]
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")  # the order of the names in a header is not fixed
    return json.loads(data[8:start]), data[start:]


def kill_runs(folder: Path, count: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """`count` runs, each killed once and resumed; a row for each."""
    draw = random.Random(0)
    clip = folder / "clip.mp4"
    write_clip(clip, scenes.render(scenes.unseen_scene("figure eight")), scenes.FPS)
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    run_dir, log = folder / "run", folder / "log"
    command = ["train", str(clip), "--prompt", "a red circle", "-o", str(run_dir), *settings]

    started = time.monotonic()
    _finish(start(run, command, log), log)
    duration = time.monotonic() - started
    wanted = contents(run_dir)
    writes = Path(f"{log}.writes").read_text().splitlines()
    moments = [moment_of(path, run_dir) for path in writes]
    say(f"the uninterrupted run: {duration:.1f} s, {len(writes)} files written")

    rows = []
    for number in range(count):
        moment = MOMENTS[number % len(MOMENTS)]
        row: dict[str, Any] = {"moment": moment}
        saboteur = None
        if moment != TIME:
            write = draw.choice([n for n, found in enumerate(moments) if found == moment])
            saboteur = Saboteur(write, draw.randrange(len(POINTS)))
            row |= {"file": Path(writes[write]).name.split(".")[1], "point": POINTS[saboteur.point]}
        while True:
            shutil.rmtree(run_dir, ignore_errors=True)
            started = time.monotonic()
            process = start(run, command, log, saboteur)
            if moment == TIME:
                row["second"] = round(draw.uniform(0, duration), 2)
                process.join(row["second"])
                process.kill()
            process.join(PATIENCE)
            if process.exitcode == -signal.SIGKILL:
                break
            assert process.exitcode == 0 and moment == TIME, log.read_text()
            duration = time.monotonic() - started  # it was over before: the machine is less busy now
        row["phase"] = reached(run_dir)
        try:
            _finish(start(run, command, log), log)
            now = contents(run_dir)
            row["unequal"] = sorted(k for k in wanted.keys() | now.keys() if wanted.get(k) != now.get(k))
        except RuntimeError as error:
            row["failed"] = str(error)
        rows.append(row)
        say(f"kill {number + 1}/{count}: {row}")
    return rows


def _finish(process: BaseProcess, log: Path) -> None:
    process.join(PATIENCE)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"exit code {process.exitcode}: {log.read_text()[-400:]}")


def tables(record: dict[str, Any]) -> str:
    """Markdown, for docs/faults.md."""
    lines = ["| killed at, or while it writes a | kills | in the phase | resumed | bit-equal |"]
    lines.append("|---" * 5 + "|")
    kills = record["kills"]
    for moment in dict.fromkeys(MOMENTS):
        lines.append(_kills(moment, [row for row in kills if row["moment"] == moment]))
    lines.append(_kills("**all**", kills))
    lines += ["", "| input | number | read | refused | tracebacks | partial, taken as whole | hangs |"]
    lines.append("|---" * 7 + "|")
    for kind in KINDS:
        lines.append(_inputs(kind, [row for row in record["inputs"] if row["kind"] == kind]))
    lines.append(_inputs("**all**", record["inputs"]))
    return "\n".join(lines)


def _kills(name: str, rows: list[dict[str, Any]]) -> str:
    phases = Counter(row["phase"] for row in rows)
    shown = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
    resumed = sum("failed" not in row for row in rows)
    equal = sum(row.get("unequal") == [] for row in rows)
    return f"| {name} | {len(rows)} | {shown} | {resumed} | {equal} |"


def _inputs(name: str, rows: list[dict[str, Any]]) -> str:
    ends = Counter(row["end"] for row in rows)
    partial = sum(row["partial"] for row in rows)
    cells = [name, len(rows), ends["read"], ends["refused"], ends["traceback"], partial, ends["hang"]]
    return "| " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only if every killed run came to the same end and every input was read or refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--results", type=Path, default=FILE)
    chosen = parser.parse_args(arguments)
    # Forks share what is imported here. Nothing is computed before they part: threads do not survive a fork.
    torch.set_num_threads(1)
    load_family("embedded")
    for name in ("fym.cli", "fym.tune", "fym.fit", "fym.convert", "fym.report.page"):
        importlib.import_module(name)

    def say(text: str) -> None:
        print(text, flush=True)

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        kills = kill_runs(folder, chosen.kills, say)
        inputs = malformed(folder, chosen.inputs, say)
    record = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "seconds": round(time.monotonic() - started),
        "kills": kills,
        "inputs": inputs,
    }
    write_file(chosen.results, json.dumps(record, indent=1) + "\n")
    print(tables(record))
    sound = all(row.get("unequal") == [] for row in kills)
    sound &= all(row["end"] in ("read", "refused") and not row["partial"] for row in inputs)
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
