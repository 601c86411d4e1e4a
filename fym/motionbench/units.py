"""The units of work of `fym motionbench run`, and how one is done.

A unit is a method on a case: tuning once, then a clip for every target and seed. Which clips have a result is
told by the results folder alone; which units someone is at, by locks in the output folder, which end with
their process.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from fym.families import load_family
from fym.motionbench.case import Case, frames_hash
from fym.motionbench.judge import Judge
from fym.motionbench.methods import CONTROLS, METHODS, Method, Model, find_method
from fym.motionbench.metrics import METRICS
from fym.motionbench.results import Results, Row, file_name, identity
from fym.motionbench.suite import DATASET, VERSION, select
from fym.motionbench.trackers import LUCAS_KANADE
from fym.runlog import spent
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


def _cost(cost: Mapping[str, float]) -> list[float]:
    names = ("seconds", "cpu_seconds", "peak_rss_mib", "peak_gpu_mib")
    return [round(cost[name], 2) for name in names if name in cost]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
