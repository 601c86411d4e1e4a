"""A whole step of stage 3 on the embedded model: on 17 of 81 frames, and naive on all 81."""

import pytest
import torch

from fym.bench import tuning
from fym.bench.measure import extra_rss


@pytest.fixture(scope="module")
def steps(options):
    with tuning.steps(options.with_compile) as made:
        yield made


@pytest.mark.parametrize("side", ["ours", "naive", "compile", "naive, all frames"])
def test_step(steps, side, options, benchmark):
    calls, tokens = steps
    if side not in calls:
        pytest.skip(f"no {side}")
    benchmark.group = "embedded model: step of stage 3"
    benchmark.pedantic(calls[side], rounds=options.rounds, warmup_rounds=2)
    if side != "naive, all frames":
        benchmark.extra_info["tokens_per_second"] = tokens / benchmark.stats.stats.median
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "extra_rss_mib": extra_rss(calls[side])}
