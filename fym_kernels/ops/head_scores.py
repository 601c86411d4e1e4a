"""head_scores: is a head spatial or temporal? Band masses of its attention map, streamed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.checks import accumulation_dtype
from fym_kernels.ops import native
from fym_kernels.reference import HeadScores
from fym_kernels.reference.head_scores import check


def head_scores(
    query: Tensor,
    key: Tensor,
    grid: tuple[int, int, int],
    *,
    band: float = 1.0,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> HeadScores:
    """Attention mass in the spatial and the temporal band and sum of p^2, (B,H), averaged over rows.

    query, key: (B,S,H,D) after norm and rotary; grid: (F',H',W'), S = F'H'W'; P = H'W'.
    Key j is in the spatial band of row i iff |i-j| < band * P, in the temporal band iff the same holds for
    the order p F' + f. rows: (n,) int64 query tokens to look at, None = all. Float32 results (float64 for
    float64 input), no gradient; memory O(chunk x S).
    Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("head_scores", query, backend)
    scores: HeadScores = run(query, key, grid, band=band, rows=rows)
    return scores


def _run(
    op: Any,
    query: Tensor,
    key: Tensor,
    grid: tuple[int, int, int],
    *,
    band: float = 1.0,
    rows: Tensor | None = None,
) -> HeadScores:
    sizes = check(query, key, grid, band, rows)
    return HeadScores(*op(query.detach(), key.detach(), sizes, float(band), rows))


def _fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _tokens, heads, _dim = query.shape
    spatial = query.new_empty((batch, heads), dtype=accumulation_dtype(query.dtype))
    return spatial, spatial.new_empty(spatial.shape), spatial.new_empty(spatial.shape)


backends.register("head_scores", "reference", reference.head_scores)
native.describe("head_scores", run=_run, fakes={"head_scores": _fake})
