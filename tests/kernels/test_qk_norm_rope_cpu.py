"""The C++ qk_norm_rope: forward and backward in every dtype, layout and instruction set."""

from __future__ import annotations

import math

import pytest
import torch
import truth
from hypothesis import given, settings
from hypothesis import strategies as st

from fym_kernels import extension, qk_norm_rope
from fym_kernels.ops import rotary_table

pytestmark = [
    pytest.mark.skipif(not extension.CPU_LOADED, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("poisoned"),
]
GRID = (3, 2, 5)
LAYOUTS = {  # axes_dim, norm, text tokens before, after, interleaved
    "wan": ((44, 42, 42), "across_heads", 0, 0, True),
    "cogvideox: text first": ((8, 4, 2), "per_head", 5, 0, True),
    "half split, text on both sides": ((4, 4, 6), "across_heads", 2, 3, False),
    "half split per head": ((16, 24, 24), "per_head", 0, 1, False),
    "rotation only": ((16, 8, 8), None, 0, 2, True),
    "no time axis": ((0, 6, 6), "across_heads", 0, 0, True),
}


def make(
    layout, dtype=torch.float32, *, heads=3, batch=2, grid=GRID, farthest=30.0, weighted=True, time_shape=()
):
    axes_dim, norm, before, after, _ = layout
    dim, tokens = sum(axes_dim), before + math.prod(grid) + after
    query, key = (torch.randn(batch, tokens, heads, dim).to(dtype).requires_grad_() for _ in range(2))
    width = heads * dim if norm == "across_heads" else dim
    weights = tuple(
        (torch.rand(width) + 0.5).to(dtype).requires_grad_() if norm and weighted else None for _ in range(2)
    )
    time = (2 * torch.rand(*time_shape, grid[0], dtype=torch.float64) - 1) * farthest
    positions = (time, torch.arange(grid[1]), torch.linspace(-1, 5, grid[2]))
    return query, key, weights, positions


def run(query, key, weights, positions, layout, **options):
    axes_dim, norm, before, _, interleaved = layout
    return qk_norm_rope(
        query, key, *weights, positions,
        axes_dim=axes_dim, norm=norm, rotate_from=before, interleaved=interleaved, **options,
    )  # fmt: skip


def definition(x, weight, positions, layout):
    """One tensor, in the dtype of x: norm, weight, and pairs turned by angles known in float64."""
    axes_dim, norm, before, after, interleaved = layout
    if norm is not None:
        flat = x.flatten(2) if norm == "across_heads" else x
        flat = flat / (flat.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        x = (flat if weight is None else flat * weight).reshape(x.shape)
    angles = [
        p.double()[..., None] * 10000.0 ** (-torch.arange(0, n, 2).double() / max(n, 1))
        for p, n in zip(positions, axes_dim, strict=True)
    ]
    frames, height, width = positions[0].shape[-1], len(positions[1]), len(positions[2])
    time = angles[0] if angles[0].ndim == 3 else angles[0][None]
    grid = (time.shape[0], frames, height, width)
    angle = torch.cat(
        (
            time[:, :, None, None].expand(*grid, -1),
            angles[1][None, None, :, None].expand(*grid, -1),
            angles[2].expand(*grid, -1),
        ),
        -1,
    ).flatten(1, 3)
    angle = torch.nn.functional.pad(angle, (0, 0, before, after))[:, :, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    turned = a * cos - b * sin, b * cos + a * sin
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


def check(layout, dtype, **options):
    query, key, weights, positions = make(layout, dtype, **options)
    outs = run(query, key, weights, positions, layout, backend="cpu")
    grads = [torch.randn(query.shape).to(dtype) for _ in range(2)]
    for x, weight, out, grad in zip((query, key), weights, outs, grads, strict=True):
        leaves = [x] if weight is None else [x, weight]
        before = [leaf.detach().clone() for leaf in leaves]
        got = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))
        assert [g.dtype for g in got] == [leaf.dtype for leaf in leaves]

        def naive(grad, x, weight=None):
            inputs = [t.detach().requires_grad_() for t in (x, weight) if t is not None]
            result = definition(*inputs, *([None] * (2 - len(inputs))), positions, layout)
            return result.detach(), *torch.autograd.grad(result, inputs, grad)

        inputs = (grad, *(leaf.detach() for leaf in leaves))
        truth.assert_as_good_as_naive((out.detach(), *got), naive, inputs, dtype)


@pytest.mark.parametrize("dtype", truth.LOW_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.usefixtures("isa")
def test_forward_and_backward(layout, dtype: torch.dtype) -> None:
    check(layout, dtype)


def test_forty_heads_time_per_sample_and_more_than_one_part_of_tokens() -> None:
    check(LAYOUTS["wan"], torch.bfloat16, heads=40, grid=(3, 5, 9), time_shape=(2,))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_positions_up_to_a_hundred_thousand_lose_nothing(layout) -> None:
    check(layout, torch.float32, farthest=1e5, weighted=False)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(0, 40),
    batch=st.integers(0, 3),
    grid=st.tuples(*(st.integers(0, 3),) * 3),
    axes=st.tuples(*(st.integers(0, 11).map(lambda n: 2 * n),) * 3).filter(sum),
    norm=st.sampled_from(["across_heads", "per_head", None]),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
    interleaved=st.booleans(),
    weighted=st.booleans(),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_reference(
    heads, batch, grid, axes, norm, before, after, interleaved, weighted, per_sample, seed
) -> None:
    torch.manual_seed(seed)
    layout = (axes, norm, before, after, interleaved)
    query, key, weights, positions = make(
        layout,
        heads=heads,
        batch=batch,
        grid=grid,
        weighted=weighted,
        time_shape=(batch,) if per_sample else (),
    )
    leaves = [t for t in (query, key, *weights) if t is not None]
    grads = [torch.randn(query.shape) for _ in range(2)]
    results = []
    for backend in ("cpu", "reference"):
        outs = run(query, key, weights, positions, layout, backend=backend)
        results.append((*outs, *torch.autograd.grad(outs, leaves, grads)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


def test_views_are_read_in_place_and_odd_ones_copied() -> None:
    """Slices of a fused QKV buffer, heads before tokens, every second channel; gradients with stride 0."""
    layout = ((4, 4, 4), "across_heads", 0, 0, True)
    _, _, weights, positions = make(layout, batch=1)
    fused = torch.randn(1, 30, 3, 3, 12)
    views = fused[:, :, 0], fused[:, :, 1]
    wide = torch.randn(1, 30, 3, 24)[..., ::2]
    wanted = run(*(v.contiguous() for v in views), weights, positions, layout, backend="cpu")
    for one, two in (views, tuple(v.transpose(1, 2).contiguous().transpose(1, 2) for v in views)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(run(one, two, weights, positions, layout, backend="cpu"), wanted, strict=True)
        )
    one, two = run(wide, wide, weights, positions, layout, backend="cpu")
    exact = run(wide.contiguous(), wide.contiguous(), weights, positions, layout, backend="cpu")
    assert torch.equal(one, exact[0]) and torch.equal(two, exact[1])
    leaf, copy = (views[0].detach().clone().requires_grad_() for _ in range(2))
    sum(o.sum() for o in run(leaf, leaf, weights, positions, layout, backend="cpu")).backward()
    sum(o.sum() for o in run(copy, copy, weights, positions, layout, backend="reference")).backward()
    torch.testing.assert_close(leaf.grad, copy.grad)


@pytest.mark.parametrize("norm", ["across_heads", "per_head"])
@pytest.mark.usefixtures("isa")
def test_the_result_does_not_depend_on_the_number_of_threads(norm) -> None:
    layout = ((44, 42, 42), norm, 0, 7, True)
    query, key, weights, positions = make(layout, torch.bfloat16, grid=(3, 7, 9))
    grads = [torch.randn(query.shape).bfloat16() for _ in range(2)]

    def results():
        outs = run(query, key, weights, positions, layout, backend="cpu")
        return *(o.detach() for o in outs), *torch.autograd.grad(outs, (query, key, *weights), grads)

    truth.assert_same_bits_for_any_threads(results)


def test_one_output_may_stay_unused_and_frozen_weights_cost_no_gradient() -> None:
    layout = LAYOUTS["wan"]
    query, key, weights, positions = make(layout)
    frozen = tuple(w.detach() for w in weights)
    out, _ = run(query, key, frozen, positions, layout, backend="cpu")
    got = torch.autograd.grad(out.sum(), (query, key))
    wanted = torch.autograd.grad(definition(query, frozen[0], positions, layout).sum(), query)
    torch.testing.assert_close(got[0], wanted[0])
    assert not got[1].any()


@pytest.mark.parametrize(("norm", "saved"), [("across_heads", 2), (None, 0)])
def test_what_is_saved(norm, saved) -> None:
    """The two inputs (nothing for a bare rotation) and small change: weights, statistics, the table."""
    layout = ((44, 42, 42), norm, 0, 0, True)
    query, key, weights, positions = make(layout, torch.bfloat16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        run(query, key, weights, positions, layout, backend="cpu")
    assert sum(n == query.numel() for n in sizes) == saved
    assert sum(n for n in sizes if n != query.numel()) < query.numel() // 4


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_opcheck(layout) -> None:
    """Schema, fake kernels, autograd registration and tracing agree with the real kernels."""
    axes_dim, norm, before, _, interleaved = layout
    query, key, weights, positions = make(layout, torch.bfloat16, time_shape=(2,))
    table = rotary_table.rotary_table(positions, axes_dim, 10000.0, query.device)
    ops, kind = torch.ops.fym_kernels, norm or "none"
    place = (list(GRID), list(axes_dim), True)
    arguments = (query, key, *weights, table, *place, 1e-6, kind, before, interleaved)
    torch.library.opcheck(ops.qk_norm_rope.default, arguments)
    q, k, w1, w2 = (None if t is None else t.detach() for t in (query, key, *weights))
    rstds = ops.qk_norm_rope(q, k, w1, w2, *arguments[4:])[2:]
    for wanted in (False, True):
        torch.library.opcheck(
            ops.qk_norm_rope_backward.default,
            (q, k, q, k, w1, w2, *rstds, table, *place, kind, before, interleaved, wanted, True),
        )


def test_compiled_with_its_gradient_it_equals_eager() -> None:
    layout = LAYOUTS["wan"]
    query, key, weights, positions = make(layout)

    def step(query, key):
        q, k = run(query, key, weights, positions, layout, backend="cpu")
        return (q * k).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, wanted = (torch.autograd.grad(f(query, key), (query, key)) for f in (compiled, step))
    torch.testing.assert_close(got, wanted)


def test_the_table_is_kept_but_never_stale() -> None:
    positions = (torch.rand(3), torch.arange(2), torch.rand(4))

    def table(theta=10.0):
        return rotary_table.rotary_table(positions, (4, 2, 2), theta, torch.device("cpu"))

    first = table()
    assert table() is first
    assert table(11.0) is not first
    positions[0].data[1] = 7.0  # behind autograd's back
    assert not torch.equal(table(), first)
    torch.testing.assert_close(table()[0, 2], torch.tensor(7.0).cos())


def test_positions_with_a_gradient_go_to_the_reference() -> None:
    layout = LAYOUTS["wan"]
    query, key, weights, (time, row, column) = make(layout)
    time = time.requires_grad_()
    out, _ = run(query, key, weights, (time, row, column), layout, backend="cpu")
    assert torch.autograd.grad(out.square().sum() + out[:, :, :, 0].sum(), time)[0].any()


def test_the_op_itself_refuses_what_it_cannot_run() -> None:
    x, table = torch.zeros(1, 24, 3, 12), torch.zeros(2, 18)
    op = torch.ops.fym_kernels.qk_norm_rope

    def call(query=x, key=x, weight=None, table=table, grid=(3, 2, 4), axes=(4, 4, 4), norm="none", at=0):
        op(query, key, weight, None, table, list(grid), list(axes), False, 1e-6, norm, at, True)

    call()
    for wrong in (
        {"key": x[:, 1:]}, {"key": x.half()}, {"query": x[0]}, {"table": table[:, 1:]}, {"grid": (3, 2)},
        {"table": table.double()}, {"axes": (4, 4, 2)}, {"norm": "rms"}, {"at": 1}, {"at": -1},
        {"weight": torch.ones(12), "norm": "across_heads"},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="must"):
            call(**wrong)
