"""`fym motionbench run`: every method on every case, resumable, shared by as many processes as there are.

The unit of work is a method on a case: tuning once, then a clip for every target and seed. Which clips have
a result is told by the results folder alone; which units someone is at, by locks in the output folder, which
end with their process. Units go case by case, so that what is there at any time can be compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import cv2
import torch

from fym.console import Console, duration
from fym.errors import UserError
from fym.families import load_family
from fym.motionbench.case import Case, frames_hash
from fym.motionbench.judge import Judge
from fym.motionbench.methods import CONTROLS, METHODS, Method, Model, find_method
from fym.motionbench.metrics import METRICS
from fym.motionbench.results import Results, Row, file_name, identity
from fym.motionbench.suite import DATASET, VERSION, select
from fym.motionbench.trackers import LUCAS_KANADE
from fym.runlog import spent
from fym.stopping import signal_of
from fym.video import write_clip

FRAMES_OF_TRACEBACK = 6
Unit = tuple[Method, Case]


@dataclass(frozen=True)
class Options:
    """What to run. methods: as `find_method` takes them; empty = all. Controls always run."""

    out: Path
    results: Path
    methods: tuple[str, ...] = ()
    part: str | None = None
    category: str | None = None
    split: str | None = None
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()  # of more real clips
    seeds: int = 2
    model: str = "embedded"
    workers: int = 1
    engine: str = "pool"  # or "ray"


class Bench:
    """The units of work of some options, and how one is done."""

    def __init__(self, options: Options) -> None:
        self.options, self.results = options, Results(options.results)
        chosen = [find_method(text) for text in options.methods or METHODS]
        self.methods: list[Method] = [*CONTROLS, *chosen]
        chosen_cases = {"part": options.part, "category": options.category, "split": options.split}
        self.cases = select(options.folders, names=options.names, **chosen_cases)
        self.reference_hash = cache(lambda case: frames_hash(self.model.reference(case)[0])[:10])
        self.settings = cache(self._settings)

    @cached_property
    def model(self) -> Model:
        return Model(self.options.model, load_family(self.options.model))

    @cached_property
    def judge(self) -> Judge:
        return Judge(select(self.options.folders), self.model.reference)

    @property
    def units(self) -> list[Unit]:
        """In the order in which they are done."""
        return [(method, case) for case in self.cases for method in self.methods]

    def missing(self, unit: Unit) -> list[tuple[int, int]]:
        """(target, seed) of the clips of a unit that have no result."""
        method, case = unit
        done = self.results.done(method.name)
        seeds = range(1 if method.control else self.options.seeds)
        wanted = [(target, seed) for target in range(len(case.targets)) for seed in seeds]
        return [clip for clip in wanted if identity(self.head(unit, *clip)) not in done]

    def head(self, unit: Unit, target: int, seed: int) -> Row:
        """What a result says of where it is from."""
        method, case = unit
        return {
            "method": method.name,
            "case": case.name,
            "category": case.category,
            "part": case.part,
            "split": case.split,
            "target": target,
            "prompt": case.targets[target].prompt,
            "seed": seed,
            "settings": self.settings(method, case),
            "code": self.code,
            "model": "" if method.control else self.model.family.model_hash[:10],
            "reference": self.reference_hash(case),
        }

    def folder(self, unit: Unit) -> Path:
        """Where the clips of a unit lie; other settings or another model have another folder."""
        method, case = unit
        key = _digest(f"{self.settings(method, case)} {self.model.family.model_hash}")
        return self.options.out / f"{file_name(method.name)}-{key}" / case.file_name

    def do(self, unit: Unit, missing: Sequence[tuple[int, int]], add: Callable[[Row], None]) -> None:
        """Tunes, makes and scores the missing clips; each result goes to `add` as soon as it is there."""
        method, case = unit
        folder = self.folder(unit)
        tuned = method.tune(self.model, case, folder)
        costs = {name: _cost(cost) for name, cost in tuned.costs.items()}
        for number, seed in missing:
            target = case.targets[number]
            with spent(self.model.family.device) as sampling:
                clip = tuned.generate(target.prompt, seed)
            write_clip(folder / f"t{number}-s{seed}.mp4", clip, self.model.reference(case)[1])
            scores = self.judge.scores(clip, case, target)
            cost = costs if method.control else {**costs, "sample": _cost(sampling)}
            add({**self.head(unit, number, seed), **scores, "cost": cost})

    def failed(self, unit: Unit, error: Exception) -> Row:
        """The record of a failed try, and a clean start for the next one."""
        method, case = unit
        folder = self.folder(unit)
        shutil.rmtree(folder / "run", ignore_errors=True)
        calls = traceback.extract_tb(error.__traceback__)[-FRAMES_OF_TRACEBACK:]
        return {
            "method": method.name,
            "case": case.name,
            "settings": self.settings(method, case),
            "code": self.code,
            "model": self.model.family.model_hash[:10],
            "error": f"{type(error).__name__}: {error}".replace(f"{folder}/", ""),
            "traceback": [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls],
        }

    def _settings(self, method: Method, case: Case) -> str:
        """The key of a method's settings, whose text is kept beside the results."""
        text = method.settings(self.model, case)
        if not method.control:
            made = self.model.family.defaults
            text += (
                "# tuned on the reference as pictures; "
                f"sampled by the model's own sampler: {made.num_inference_steps} steps, guidance "
                f"{made.guidance_scale:g}, {made.num_frames} frames of {made.height} x {made.width}\n"
            )
        key = _digest(text)
        self.results.add_origin(f"{key}.toml", text)
        return key

    @cached_property
    def code(self) -> str:
        """The key of the versions of all that makes a result."""
        packages = ("fym", "torch", "diffusers", "numpy", "opencv-python-headless")
        about = {
            "data set": f"{DATASET} {VERSION}",
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "tracker": LUCAS_KANADE.name,
            "metrics": {name: metric.version for name, metric in METRICS.items()},
        }
        text = json.dumps(about, indent=1) + "\n"
        key = _digest(text)
        self.results.add_origin(f"{key}.json", text)
        return key


def run(options: Options) -> int:
    """Does what is missing; 0 if in the end nothing is, but for what other processes are at, else 1.

    Raises UserError for an unknown method, case or model, and for settings that are none.
    """
    bench = Bench(options)
    if not bench.cases:
        raise UserError(
            "There is nothing to run", "no case is of that part, category and split", "Choose others"
        )
    for method in bench.methods:
        bench.settings(method, bench.cases[0])  # a mistake in them shows now
    if options.engine == "ray":
        from fym.motionbench.ray_engine import run_on_ray

        run_on_ray(bench)
    elif options.workers > 1:
        _in_processes(options)
    else:
        serve(bench)
    return _summary(bench)


def serve(bench: Bench, go_on: Callable[[], bool] = lambda: True) -> None:
    """Goes through the units once and does those that are neither done nor someone else's.

    In one thread: results then do not depend on how many cores there are or how many processes share them.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console()
    units = bench.units
    for number, unit in enumerate(units, 1):
        if not go_on():
            return
        if not bench.missing(unit):
            continue
        with claimed(bench.folder(unit)) as mine:
            missing = bench.missing(unit) if mine else []  # another process may have done some just now
            if not missing:
                continue
            label = f"{number}/{len(units)} {unit[0].name} on {unit[1].name}"
            made: list[Row] = []

            def add(row: Row, made: list[Row] = made) -> None:
                bench.results.add(row)
                made.append(row)

            try:
                with spent(bench.model.family.device) as cost:
                    bench.do(unit, missing, add)
            except Exception as error:
                bench.results.add_failure(bench.failed(unit, error))
                console.info(f"{label}: failed, {type(error).__name__}: {error}")
            else:
                console.info(f"{label}: {_line(made)}, {duration(cost['seconds'])}")


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work in the folder; the claim ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _in_processes(options: Options) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(options, os.getpid())) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt as stop:  # they keep what they have
        for worker in workers:
            if signal_of(stop) == signal.SIGTERM:  # unlike Ctrl-C, which a terminal sends to all
                worker.terminate()
            worker.join()
        raise
    lost = [worker.exitcode for worker in workers if worker.exitcode]
    if lost:
        Console().info(f"{len(lost)} of {len(workers)} workers ended early (exit codes {lost})")


def _worker(options: Options, parent: int) -> None:
    """One process of the pool; stops after its unit when its parent is gone."""
    try:
        serve(Bench(options), lambda: os.getppid() == parent)
    except UserError as error:
        print(f"fym: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _summary(bench: Bench) -> int:
    """Says what is left, and returns the exit code."""
    failed, elsewhere = [], 0
    for unit in bench.units:
        if bench.missing(unit):
            with claimed(bench.folder(unit)) as free:
                elsewhere += not free
                if free:
                    failed.append(f"{unit[0].name} on {unit[1].name}")
    console = Console()
    if elsewhere:
        console.info(f"{elsewhere} units are being done by other processes")
    if failed:
        shown = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        console.info(f"{len(failed)} units have no result: {shown}")
        console.info(
            f"the reasons are in {bench.options.results}/*.failures.jsonl; run it again to try again"
        )
    return 1 if failed else 0


def _line(rows: Sequence[Row]) -> str:
    """What some rows show at a glance."""
    text = f"{len(rows)} clip{'s' * (len(rows) != 1)}"
    for name in ("cosine", "direction"):
        found = [
            row["exact"].get(name) if name == "cosine" and "exact" in row else row["metrics"].get(name)
            for row in rows
        ]
        values = [value for value in found if value is not None and value == value]
        if values:
            text += f", {name} {sum(values) / len(values):.2f}"
    return text


def _cost(cost: Mapping[str, float]) -> list[float]:
    names = ("seconds", "cpu_seconds", "peak_rss_mib", "peak_gpu_mib")
    return [round(cost[name], 2) for name in names if name in cost]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
