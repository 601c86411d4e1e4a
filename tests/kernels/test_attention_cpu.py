"""head_attention and head_scores on the CPU: against dense masks, for every instruction set and kind."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, head_attention, head_scores

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
GRID, TOKENS = (3, 3, 4), 36
KINDS = {"spatial": [1, 1], "temporal": [2, 2], "mixed": [2, 0, 1, 2, 1]}
WINDOWS = {
    "own": {},
    "frames": {"frame_window": 1},
    "locations": {"location_window": 1},
    "sink": {"first_frame_sink": True},
    "everything": {"frame_window": 1, "location_window": 2, "first_frame_sink": True},
}
each_dtype = pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def attend(function, q, k, v, grad):
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_attention(kinds, grid, dim, dtype, options, *, batch=2, roundings=1, sizes=None) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    kind = torch.tensor(kinds, dtype=torch.int8)
    inputs = tuple(random(batch, tokens, len(kinds), dim, dtype=dtype) for _ in range(4))
    before = [t.clone() for t in inputs]

    def definition(q, k, v):
        named = (options.get(n, 0) for n in ("frame_window", "location_window", "first_frame_sink"))
        return truth.attention(q, k, v, kind, grid, *named)

    def ours(q, k, v):
        return head_attention(q, k, v, kind, grid, **options, backend="cpu")

    def naive(*tensors):
        return attend(definition, *tensors)

    truth.assert_as_good_as_naive(
        attend(ours, *inputs), naive, inputs, dtype, roundings=roundings, sizes=sizes
    )
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS.keys())
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@each_dtype
def test_attention_and_every_gradient(dtype, kinds, options) -> None:
    # the backward pass rebuilds p from a logsumexp rounded to float32, which only float32 shows
    assert_attention(kinds, GRID, 40, dtype, options, roundings=2 if dtype == torch.float32 else 1)


@pytest.mark.parametrize("dim", [5, 16, 72])
@pytest.mark.usefixtures("isa")
def test_temporal_heads_for_each_instruction_set(dim: int) -> None:
    for options in WINDOWS.values():
        assert_attention([2, 1, 2], GRID, dim, torch.bfloat16, options, batch=1)


@settings(max_examples=15, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=6), dim=st.integers(1, 20),
    batch=st.integers(1, 3), dtype=st.sampled_from(truth.LOW_DTYPES),
    options=st.sampled_from([*WINDOWS.values()]),
)  # fmt: skip
def test_attention_of_any_shape(grid, kinds, dim, batch, dtype, options) -> None:
    # With one key to see, the gradients of query and key are zero: a difference of equal numbers, of order 1
    # as the inputs are.
    sizes = [torch.ones(batch, grid[0] * grid[1] * grid[2], len(kinds), dim)] * 4
    assert_attention(kinds, grid, dim, dtype, options, batch=batch, roundings=2, sizes=sizes)


def test_attention_of_forty_heads() -> None:
    assert_attention([h % 3 for h in range(40)], (2, 3, 2), 8, torch.bfloat16, {}, batch=1)


def test_all_full_is_torchs_attention_bit_for_bit() -> None:
    q, k, v = torch.randn(3, 2, TOKENS, 4, 16)
    wanted = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    got = head_attention(q, k, v, torch.zeros(4, dtype=torch.int8), GRID, backend="cpu")
    assert torch.equal(got, wanted.transpose(1, 2))


def test_views_of_a_fused_buffer_and_transposed_heads_give_the_same_bits() -> None:
    kind = torch.tensor([2, 0, 1, 2], dtype=torch.int8)
    fused = torch.randn(2, TOKENS, 3, 4, 12)
    by_head = torch.randn(3, 2, 4, TOKENS, 12).transpose(2, 3)
    for views in (fused.unbind(2), by_head.unbind(0)):
        dense = [v.contiguous() for v in views]
        grad = torch.randn(2, 12, TOKENS, 4).permute(0, 2, 3, 1)  # not even its last dimension is dense

        def run(q, k, v):
            return head_attention(q, k, v, kind, GRID, location_window=1, backend="cpu")

        given = [v.detach().requires_grad_() for v in views]
        out = run(*given)
        got = [out.detach(), *torch.autograd.grad(out, given, grad)]
        torch.testing.assert_close(got, attend(run, *dense, grad.contiguous()), rtol=1e-6, atol=1e-6)
        scores = [head_scores(*pair[:2], GRID, backend="cpu") for pair in (views, dense)]
        assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


def test_only_query_key_value_output_and_logsumexp_are_saved() -> None:
    q, k, v = (random(1, TOKENS, 2, 16).requires_grad_() for _ in range(3))
    kind = torch.tensor([1, 2], dtype=torch.int8)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        head_attention(q, k, v, kind, GRID, backend="cpu")
    assert sorted(shapes) == sorted([tuple(q.shape)] * 4 + [(1, 2, TOKENS), (2,)])


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS.keys())
def test_attention_gives_the_same_bits_for_any_threads(options) -> None:
    q, k, v, grad = (random(2, 5 * 40, 4, 16, dtype=torch.bfloat16) for _ in range(4))
    kind = torch.tensor([2, 0, 1, 2], dtype=torch.int8)

    def run():
        return attend(
            lambda q, k, v: head_attention(q, k, v, kind, (5, 8, 5), **options, backend="cpu"), q, k, v, grad
        )

    truth.assert_same_bits_for_any_threads(run)


def test_empty_sizes_and_wrong_kinds() -> None:
    kind = torch.tensor([0, 1, 2], dtype=torch.int8)
    for shape, grid in (((0, TOKENS, 3, 4), GRID), ((2, 0, 3, 4), (0, 3, 4)), ((2, TOKENS, 0, 4), GRID)):
        x = torch.zeros(shape, requires_grad=True)
        out = head_attention(x, x, x, kind[: shape[2]], grid, backend="cpu")
        assert out.shape == shape and torch.autograd.grad(out.sum(), x)[0].shape == shape
    x = torch.zeros(1, TOKENS, 3, 4)
    with pytest.raises(ValueError, match=r"head_kind must hold 0 .* got \[3\]"):
        head_attention(x, x, x, kind + 1, GRID, backend="cpu")


@pytest.mark.parametrize("band", [1.0, 0.3, 1.7])
@pytest.mark.parametrize("grid", [GRID, (6, 3, 2), (1, 4, 9), (36, 1, 1)], ids=str)
@each_dtype
@pytest.mark.usefixtures("isa")
def test_scores_equal_dense_masks(dtype, grid, band: float) -> None:
    query, key = (random(2, TOKENS, 3, 21, dtype=dtype) * 2 for _ in range(2))
    for rows in (None, torch.tensor([7, 0, 35, 7])):
        got = head_scores(query, key, grid, band=band, rows=rows, backend="cpu")
        wanted = truth.scores(query.double(), key.double(), grid, band, rows)
        # the inputs are exact and the arithmetic is float32: a few hundred roundings of values below 1
        torch.testing.assert_close([s.double() for s in got], list(wanted), rtol=0, atol=2e-6)


@pytest.mark.usefixtures("isa")
def test_scores_over_several_blocks_of_keys_and_peaked_maps() -> None:
    """1,353 keys are not a whole number of blocks; a row's largest logit comes late, early or everywhere."""
    grid = (3, 11, 41)
    for size in (0.1, 4.0, 12.0):
        query, key = (size * random(1, 1353, 2, 16) for _ in range(2))
        got = head_scores(query, key, grid, backend="cpu")
        wanted = head_scores(query.double(), key.double(), grid)
        # a logit of 2000 has an error of 1e-4 in float32: the map's own condition
        bound = 2e-6 + 1e-7 * size**2 * 16
        torch.testing.assert_close([s.double() for s in got], list(wanted), rtol=0, atol=bound)


def test_scores_give_the_same_bits_for_any_threads() -> None:
    query, key = (random(2, 1353, 2, 16, dtype=torch.bfloat16) for _ in range(2))
    truth.assert_same_bits_for_any_threads(lambda: head_scores(query, key, (3, 11, 41), backend="cpu"))


def test_memory_of_the_scores_at_full_length() -> None:
    """9,360 tokens and 12 heads of 128, in a process of its own: less than 64 MiB beside the inputs."""
    code = (
        "import resource, torch, fym_kernels as f\n"
        "def top(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "q, k = torch.randn(2, 1, 9360, 12, 128, dtype=torch.bfloat16).unbind(0)\n"
        "rows = torch.arange(0, 9360, 180)\n"
        "f.head_scores(q[:, :60], k[:, :60], (6, 2, 5), backend='cpu')\n"
        "before = top(); f.head_scores(q, k, (6, 30, 52), rows=rows, backend='cpu'); print(top() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 64 << 20


def test_scores_carry_no_gradient() -> None:
    query = random(1, TOKENS, 2, 4).requires_grad_()
    assert not any(s.requires_grad for s in head_scores(query, query, GRID, backend="cpu"))


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS.keys())
def test_opcheck(options) -> None:
    """Schema, fake kernel, autograd registration and tracing agree with the real kernels."""
    ops = torch.ops.fym_kernels
    q, k, v = (random(1, TOKENS, 3, 8).requires_grad_() for _ in range(3))
    kind = torch.tensor([2, 0, 1], dtype=torch.int8)
    named = [options.get("frame_window", 0), options.get("location_window", 0), "first_frame_sink" in options]
    rest = (kind, list(GRID), *named, 0.3)
    torch.library.opcheck(ops.head_attention.default, (q, k, v, *rest))
    q, k, v = (t.detach() for t in (q, k, v))
    out, logsumexp = ops.head_attention(q, k, v, *rest)
    torch.library.opcheck(ops.head_attention_backward.default, (out, q, k, v, out, logsumexp, *rest))
    torch.library.opcheck(ops.head_scores.default, (q, k, list(GRID), 1.0, None))
    torch.library.opcheck(ops.head_scores.default, (q, k, list(GRID), 0.7, torch.tensor([3, 1])))


def test_traces_without_a_graph_break() -> None:
    q, k, v = (random(1, TOKENS, 3, 8).requires_grad_() for _ in range(3))
    kind = torch.tensor([2, 0, 1], dtype=torch.int8)

    def step(q, k, v):
        out = head_attention(q, k, v, kind, GRID)
        return out.square().sum() + sum(s.sum() for s in head_scores(q, k, GRID))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad(step(q, k, v), (q, k, v)))
