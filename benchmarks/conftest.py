"""Sizes and sides for the pytest-benchmark cases: `pytest benchmarks`, see docs/benchmarks.md.

FYM_BENCH_QUICK=1 takes small shapes, to see that the cases work. Every benchmark's extra_info holds tokens/s,
and that of a step the bytes its graph keeps and the growth of the process.
"""

import os

import pytest
import torch

from fym.bench.cases import Case
from fym.bench.measure import extra_rss, saved_bytes
from fym.bench.targets import Options

ROUNDS = 10


@pytest.fixture(scope="session")
def options() -> Options:
    quick = os.environ.get("FYM_BENCH_QUICK", "") not in ("", "0")
    return Options(rounds=2 if quick else ROUNDS, quick=quick, with_compile=not quick)


@pytest.fixture
def run(benchmark, options):
    """run(case, side, mode) times one side of a case; "floor" is a side like the others."""

    def run_(case: Case, side: str, mode: str) -> None:
        calls = case.calls(mode)
        if side not in calls:
            pytest.skip(f"{case.name} has no {side} for {mode}")
        benchmark.group = f"{case.name}: {mode}"
        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.pedantic(calls[side], rounds=options.rounds, warmup_rounds=1)
        benchmark.extra_info["tokens_per_second"] = case.num_tokens / benchmark.stats.stats.median
        if side == "floor":
            benchmark.extra_info["times"] = case.floor_factor(mode)  # the floor in units of this call
        elif mode == "step":
            work = case.sides[side]
            benchmark.extra_info["saved_bytes"] = saved_bytes(work.forward, work.weights)
            benchmark.extra_info["extra_rss_mib"] = extra_rss(calls[side])

    return run_
