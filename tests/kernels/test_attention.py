"""head_scores and head_attention: equal to dense masks on S x S maps, which they never make themselves."""

from __future__ import annotations

import importlib

import pytest
import torch
import truth
from torch.utils._python_dispatch import TorchDispatchMode

from fym_kernels import head_attention, head_scores

GRID = (3, 2, 4)
TOKENS = 24
SCORES = importlib.import_module("fym_kernels.reference.head_scores")


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.randn(*shape)).to(dtype)


@pytest.mark.parametrize("chunk", [1, 5 * TOKENS, 1 << 20], ids=["row by row", "odd chunks", "one chunk"])
@pytest.mark.parametrize("band", [1.0, 0.3, 1.7])
@pytest.mark.parametrize("grid", [GRID, (6, 2, 2), (1, 4, 6), (24, 1, 1)], ids=str)
def test_scores_equal_dense_masks(grid, band: float, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(SCORES, "CHUNK_ELEMENTS", chunk)
    query, key = random(2, TOKENS, 3, 5), random(2, TOKENS, 3, 5)
    got = head_scores(query, key, grid, band=band)
    torch.testing.assert_close(tuple(got), truth.scores(query, key, grid, band, None), rtol=0, atol=1e-12)


def test_scores_of_sampled_rows() -> None:
    query, key = random(2, TOKENS, 3, 5), random(2, TOKENS, 3, 5)
    rows = torch.tensor([7, 0, 23, 11])
    got = head_scores(query, key, GRID, rows=rows)
    torch.testing.assert_close(tuple(got), truth.scores(query, key, GRID, 1.0, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_scores_in_low_precision_are_float32(dtype: torch.dtype) -> None:
    query, key = random(1, TOKENS, 3, 5, dtype=dtype), random(1, TOKENS, 3, 5, dtype=dtype)
    got = head_scores(query, key, GRID)
    assert all(score.dtype == torch.float32 for score in got)
    wanted = truth.scores(query.double(), key.double(), GRID, 1.0, None)
    # the inputs are exact and the arithmetic is float32: a few hundred roundings of values below 1
    torch.testing.assert_close(tuple(s.double() for s in got), wanted, rtol=0, atol=2e-6)


def test_scores_keep_no_map_and_no_gradient() -> None:
    """1,600 tokens: a map of one head has 2.56 M entries; nothing that large is ever made."""
    grid = (16, 10, 10)
    query = torch.randn(1, 1600, 2, 4, requires_grad=True)
    with Largest() as largest:
        scores = head_scores(query, query, grid)
    assert largest.elements <= SCORES.CHUNK_ELEMENTS < 1600**2
    assert not scores.spatial.requires_grad


def test_a_head_that_copies_its_frame_and_one_that_follows_its_location() -> None:
    """Peaked on purpose: keys that only match inside the frame, or only at the location."""
    frames, places = 8, 16
    frame = torch.arange(frames).repeat_interleave(places)
    place = torch.arange(places).repeat(frames)
    spatial = torch.nn.functional.one_hot(frame, places).float()
    temporal = torch.nn.functional.one_hot(place, places).float()
    heads = 60 * torch.stack((spatial, temporal), dim=1)[None]
    scores = head_scores(heads, heads, (frames, 4, 4))
    ratio = (scores.temporal / scores.spatial)[0]
    assert ratio[0] < 0.5
    assert ratio[1] > 2


KINDS = {
    "all full": [0, 0, 0, 0],
    "all spatial": [1, 1, 1, 1],
    "all temporal": [2, 2, 2, 2],
    "mixed": [2, 0, 1, 2],
    "two kinds": [1, 2, 2, 1],
}
WINDOWS = {
    "own": {},
    "frames": {"frame_window": 1},
    "locations": {"location_window": 1},
    "sink": {"first_frame_sink": True},
    "everything": {"frame_window": 2, "location_window": 2, "first_frame_sink": True},
}


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_attention_equals_dense_masks(kinds: list[int], options: dict) -> None:
    q, k, v = (random(2, TOKENS, 4, 5) for _ in range(3))
    kind = torch.tensor(kinds, dtype=torch.int8)
    got = head_attention(q, k, v, kind, GRID, **options)
    wanted = truth.attention(
        *(q, k, v, kind, GRID),
        options.get("frame_window", 0),
        options.get("location_window", 0),
        options.get("first_frame_sink", False),
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
def test_attention_in_low_precision(dtype: torch.dtype) -> None:
    q, k, v = (random(1, TOKENS, 3, 8, dtype=dtype) for _ in range(3))
    kind = torch.tensor([0, 1, 2], dtype=torch.int8)
    got = head_attention(q, k, v, kind, GRID)

    def definition(q, k, v):
        return truth.attention(q, k, v, kind, GRID)

    truth.assert_as_good_as_naive(got, definition, (q, k, v), dtype)


def test_all_full_is_torchs_attention_bit_for_bit() -> None:
    q, k, v = torch.randn(3, 2, TOKENS, 4, 16)
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*swapped).transpose(1, 2)
    got = head_attention(q, k, v, torch.zeros(4, dtype=torch.int8), GRID, backend="reference")
    assert torch.equal(got, wanted)


def test_scale_views_and_empty_sizes() -> None:
    fused = torch.randn(2, TOKENS, 3, 3, 5, dtype=torch.float64)
    q, k, v = fused.unbind(2)
    kind = torch.tensor([0, 1, 2], dtype=torch.int8)
    dense = [x.contiguous() for x in (q, k, v)]
    got = head_attention(q, k, v, kind, GRID, scale=0.1)
    torch.testing.assert_close(got, head_attention(*dense, kind, GRID, scale=0.1), rtol=0, atol=1e-13)
    rescaled = head_attention(dense[0] * 0.1 * 5**0.5, *dense[1:], kind, GRID)
    torch.testing.assert_close(got, rescaled, rtol=0, atol=1e-13)
    assert head_attention(q[:0], k[:0], v[:0], kind, GRID).shape == (0, TOKENS, 3, 5)
    none = fused[:, :0].unbind(2)
    assert head_attention(*none, kind, (0, 2, 4)).shape == (2, 0, 3, 5)


def test_attention_gradients() -> None:
    q, k, v = (random(1, 12, 3, 2).requires_grad_() for _ in range(3))
    kind = torch.tensor([2, 0, 1], dtype=torch.int8)

    def run(q, k, v):
        return head_attention(q, k, v, kind, (3, 2, 2), frame_window=1, location_window=1)

    assert torch.autograd.gradcheck(run, (q, k, v))


QUERY = torch.zeros(1, TOKENS, 3, 4)
KIND = torch.zeros(3, dtype=torch.int8)
BAD_SCORES = {
    "query must have 4 dimensions": {"query": torch.zeros(1, TOKENS, 12)},
    "key must have shape": {"key": torch.zeros(1, 12, 3, 4)},
    r"grid \(3, 2, 3\) holds 18 tokens, but query has 24": {"grid": (3, 2, 3)},
    "grid must be": {"grid": (24,)},
    "band must be > 0": {"band": 0.0},
    r"rows must lie in 0..23, got 0..24": {"rows": torch.tensor([0, 24])},
    "rows must be a non-empty 1-D int64": {"rows": torch.tensor([], dtype=torch.int64)},
}
BAD_ATTENTION = {
    "head_kind must be an int8": {"head_kind": KIND.long()},
    r"head_kind must have shape \(3,\)": {"head_kind": KIND[:2]},
    r"head_kind must hold 0 .* got \[3\]": {"head_kind": KIND + 3},
    "value must have shape": {"value": QUERY[..., :2]},
    "frame_window must be >= 0": {"frame_window": -1},
    "location_window must be >= 0": {"location_window": -1},
}


@pytest.mark.parametrize(("message", "change"), BAD_SCORES.items(), ids=BAD_SCORES.keys())
def test_bad_scores_input_names_the_argument(message: str, change: dict) -> None:
    with pytest.raises(ValueError, match=message):
        head_scores(**({"query": QUERY, "key": QUERY, "grid": GRID} | change))


@pytest.mark.parametrize(("message", "change"), BAD_ATTENTION.items(), ids=BAD_ATTENTION.keys())
def test_bad_attention_input_names_the_argument(message: str, change: dict) -> None:
    arguments = {"query": QUERY, "key": QUERY, "value": QUERY, "head_kind": KIND, "grid": GRID}
    with pytest.raises(ValueError, match=message):
        head_attention(**(arguments | change))
