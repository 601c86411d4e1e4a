"""The Triton kernel of head_scores gives the reference's three numbers per head."""

from __future__ import annotations

import pytest
import torch
from triton_parity import (  # noqa: F401
    assert_as_good,
    in_each_dtype,
    interpreted,
    poisoned_memory,
    randn,
    strided,
)

pytestmark = interpreted()

from fym_kernels import reference  # noqa: E402
from fym_kernels.triton import head_scores  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "case"),
    in_each_dtype(
        [
            ((3, 2, 3), 1, 12, 1.0, False),
            ((1, 3, 3), 3, 16, 0.4, False),
            ((5, 1, 1), 1, 8, 2.5, True),
            ((4, 3, 2), 1, 20, 1.3, True),
        ]
    ),
)
def test_scores(dtype: torch.dtype, case: tuple[tuple[int, int, int], int, int, float, bool]) -> None:
    grid, heads, dim, band, sampled = case
    tokens = grid[0] * grid[1] * grid[2]
    query, key = (2 * randn(2, tokens, heads, dim, dtype=dtype, seed=seed) for seed in range(2))
    rows = torch.tensor([tokens - 1, 0, tokens // 2, 1]) if sampled else None
    exact = reference.head_scores(query.double(), key.double(), grid, band=band, rows=rows)
    naive = reference.head_scores(query, key, grid, band=band, rows=rows)
    actual = head_scores.forward(strided(query), strided(key), grid, band=band, rows=rows)
    for what, a, n, e in zip(exact._fields, actual, naive, exact, strict=True):
        assert_as_good(a, n, e, what)


def test_a_band_over_everything_holds_all_the_mass() -> None:
    query = randn(1, 6, 1, 8, dtype=torch.float64, seed=0)
    spatial, temporal, _ = head_scores.forward(query, query, (3, 2, 1), band=100.0)
    torch.testing.assert_close(spatial, torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(temporal, torch.ones(1, 1, dtype=torch.float64))
