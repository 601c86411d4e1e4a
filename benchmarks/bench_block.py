"""A training step of one Wan block: ours (also with the FFN recomputed), naive, compiled, and the floor."""

import pytest

from fym.bench import cases
from fym.bench.targets import RANK


@pytest.fixture(scope="module")
def case(options):
    return cases.block(
        options.width, options.block_grid, options.dtype, RANK, with_compile=options.with_compile
    )


@pytest.mark.parametrize("side", ["ours", "naive", "compile", "floor"])
def test_step(case, side, run):
    run(case, side, "step")


def test_step_with_the_ffn_recomputed(options, run):
    case = cases.block(
        options.width,
        options.block_grid,
        options.dtype,
        RANK,
        with_naive=False,
        with_floor=False,
        recompute_ffn=True,
    )
    run(case, "ours", "step")
