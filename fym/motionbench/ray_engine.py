"""The units of `fym motionbench run` as tasks of Ray, on one machine or a cluster.

Results come back to the process that started the run, which alone writes them. Clips and motion files stay
in the output folder of the machine that made them, which may be a shared one. Every machine needs this
package; a task that loses its machine is started again on another.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import torch

from fym.console import Console
from fym.errors import UserError
from fym.motionbench.results import Row
from fym.motionbench.units import Bench, Options, claimed


def run_on_ray(bench: Bench) -> None:
    """Does what is missing. The cluster: one that is connected already, that of RAY_ADDRESS, or one started
    here with as many processes as there are workers (with one worker: as cores).

    Raises UserError where Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "Ray cannot be used", str(error), "pip install 'fym[ray]', or --engine pool"
        ) from error
    options = replace(bench.options, out=bench.options.out.resolve(), results=bench.options.results.resolve())
    started = not ray.is_initialized()
    if started:
        _connect(ray, options.workers)
    try:
        task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_unit)
        waiting = {
            task.remote(options, number, missing): unit
            for number, unit in enumerate(bench.units)
            if (missing := bench.missing(unit))
        }
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            method, case = waiting.pop(done)
            try:
                rows, failure = ray.get(done)
            except ray.exceptions.RayError as error:  # its process was killed, again and again
                rows, failure = [], bench.failed((method, case), error)
            for row in rows:
                bench.results.add(row)
            if failure is not None:
                bench.results.add_failure(failure)
            said = f"failed, {failure['error']}" if failure is not None else f"{len(rows)} clips"
            Console().info(f"{method.name} on {case.name}: {said} ({len(waiting)} to go)")
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers if workers > 1 else None}
    try:
        ray.init(log_to_driver=False, include_dashboard=False, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError("Ray does not answer", reason, "Check RAY_ADDRESS, or use --engine pool") from error


def _unit(options: Options, number: int, missing: list[tuple[int, int]]) -> tuple[list[Row], Row | None]:
    """One unit, in a process of Ray: its results, and the failure that ended it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    bench = _bench(options)
    unit = bench.units[number]
    rows: list[Row] = []
    with claimed(bench.folder(unit)) as mine:
        if not mine:
            return rows, None
        try:
            bench.do(unit, missing, rows.append)
        except Exception as error:
            return rows, bench.failed(unit, error)
    return rows, None


@cache
def _bench(options: Options) -> Bench:
    return Bench(options)
