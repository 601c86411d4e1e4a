"""`fym motionbench run`: every method on every case, resumable, shared by as many processes as there are.

Units (fym.motionbench.units) go case by case, so that what is there at any time can be compared.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence

import cv2
import torch

from fym.console import Console, duration
from fym.errors import UserError
from fym.motionbench.ray_engine import run_on_ray
from fym.motionbench.results import Row
from fym.motionbench.units import Bench, Options, claimed
from fym.runlog import spent
from fym.stopping import signal_of


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
