"""Every CUDA kernel and binding runs, on the emulator: values and gradients as good as the naive path's."""

from __future__ import annotations

import math
import mmap

import emulated
import pytest
import torch
from cases import CASES, Case
from interpreter import poisoned_memory  # noqa: F401
from parity import assert_parity, strided
from torch import Tensor

import fym_kernels
from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.ops import modulated_norm, native, qk_norm_rope

pytestmark = pytest.mark.skipif(
    emulated.COMPILER is None, reason="no C++ compiler to build the emulator with"
)

WAN, HUNYUAN = (44, 42, 42), (16, 56, 56)
# what the shared list leaves out: several vectors a thread, parts of a sum, and heads of every divisibility
MORE = [
    Case("gated_residual", "several parts", {"shape": (2, 150, 24)}),
    Case("gated_residual", "several tiles", {"shape": (1, 3, 640)}),
    Case("gated_residual", "tail of a tile", {"shape": (1, 18, 541), "per_token": True}),
    Case("modulated_norm", "two vectors", {"shape": (1, 9, 2048)}),
    Case("modulated_norm", "widest", {"shape": (1, 2, 8192), "scale_per_token": True}),
    Case("modulated_norm", "widest odd", {"shape": (1, 2, 8191), "shift_per_token": True}),
    Case("modulated_norm", "one", {"shape": (1, 1, 1)}),
    Case(
        "qk_norm_rope",
        "wan per head",
        {"grid": (1, 2, 2), "heads": 24, "axes_dim": HUNYUAN, "norm": "per_head"},
    ),
    Case(
        "qk_norm_rope",
        "64 halves",
        {"grid": (3, 2, 3), "heads": 5, "axes_dim": (16, 24, 24), "interleaved": False},
    ),
    Case(
        "qk_norm_rope", "40 halves", {"grid": (2, 1, 1), "heads": 40, "axes_dim": WAN, "interleaved": False}
    ),
    Case(
        "qk_norm_rope",
        "three units",
        {"grid": (1, 3, 1), "heads": 3, "axes_dim": (16, 16, 16), "norm": "per_head"},
    ),
    Case(
        "qk_norm_rope",
        "odd units",
        {"grid": (1, 3, 1), "heads": 9, "axes_dim": (8, 4, 2), "norm": "per_head"},
    ),
    Case(
        "qk_norm_rope",
        "odd halves",
        {"grid": (5, 2, 2), "heads": 7, "axes_dim": (6, 2, 2), "interleaved": False},
    ),
    Case("qk_norm_rope", "one", {"grid": (1, 1, 1), "heads": 1, "axes_dim": (2, 0, 0)}),
    Case("motion_loss", "wide", {"shape": (2, 3, 9, 8, 20), "weighted": True}),
    Case("motion_loss", "several tiles", {"shape": (1, 1, 5, 33, 40)}),
    Case("motion_loss", "odd", {"shape": (1, 2, 4, 29, 37)}),
]
ALL = [case for case in (*CASES, *MORE) if case.op in emulated.OPS]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fused(x: Tensor) -> Tensor:
    """The middle third of a buffer, nan around it: a view whose rows stay aligned for vectors."""
    if x.ndim < 2 or not x.is_floating_point():
        return x
    middle = min(x.ndim - 1, 2)
    buffer = x.new_full((*x.shape[:middle], 3, *x.shape[middle:]), torch.nan)
    return buffer.select(middle, 1).copy_(x)


def run(op: str, *arguments, **options):
    """The public function on the emulator."""
    with emulated.as_cuda(op):
        return getattr(fym_kernels, op)(*arguments, **options, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.op}-{case}")
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    """Dense tensors, odd views, aligned views; another order of threads and blocks, the same bits."""
    for layout in (torch.clone, strided, fused):
        with emulated.as_cuda(case.op):
            assert_parity(case, dtype, "cuda", layout=layout)


def arguments_of_op(op: str) -> tuple:
    """What the op itself is called with for its first case."""
    inputs, seen = next(case for case in ALL if case.op == op).inputs(torch.float32), []
    emulated.load(op)

    def note(*arguments):
        seen.append(arguments)
        return getattr(torch.ops.fym_emulated, op)(*arguments)

    options = {"theta": 1e4, "eps": 1e-6} if op == "qk_norm_rope" else {}
    native._descriptions[op].run(note, *inputs.arguments, **options, **inputs.options)
    return seen[0]


@pytest.mark.parametrize("op", emulated.OPS)
def test_opcheck(op: str) -> None:
    """Schema, fake kernels, autograd registration and tracing agree with the bindings."""
    arguments = arguments_of_op(op)  # loads the op
    torch.library.opcheck(getattr(torch.ops.fym_emulated, op).default, arguments)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)], ids=str)
def test_empty(shape: tuple[int, int, int]) -> None:
    x = torch.ones(shape, requires_grad=True)
    modulation = torch.ones(shape[0], shape[2], requires_grad=True)
    for op, arguments in (
        ("gated_residual", (x, x, modulation)),
        ("modulated_norm", (x, modulation, modulation)),
    ):
        out = run(op, *arguments)
        grad_x, grad_modulation = torch.autograd.grad(out.sum(), (x, modulation))
        assert out.shape == grad_x.shape == shape
        assert torch.equal(grad_modulation, torch.zeros_like(modulation))
    for empty in ((0, 4, 2, 8), (2, 0, 2, 8), (2, 4, 0, 8)):
        query, weight = torch.ones(empty, requires_grad=True), torch.ones(empty[2] * 8, requires_grad=True)
        positions = tuple(torch.ones(min(1, empty[1])) for _ in range(3))
        options = {"axes_dim": (4, 2, 2), "norm": "across_heads", "rotate_from": 0, "interleaved": True}
        outs = run("qk_norm_rope", query, query, weight, None, positions, eps=0.0, **options)
        grads = torch.autograd.grad(sum(out.sum() for out in outs), (query, weight))
        assert outs[0].shape == outs[1].shape == grads[0].shape == empty
        assert torch.equal(grads[1], torch.zeros_like(weight))


@pytest.mark.parametrize("gate_dtype", [torch.float16, torch.bfloat16])
def test_modulations_of_another_dtype_are_converted(gate_dtype: torch.dtype) -> None:
    x, y = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    gate = torch.randn(2, 8).to(gate_dtype).requires_grad_()
    shift = torch.randn(2, 8, requires_grad=True)
    for op, arguments in (("gated_residual", (x, y, gate)), ("modulated_norm", (x, gate, shift))):
        out = run(op, *arguments)
        wide = tuple(a.detach().float().requires_grad_() for a in arguments)
        exact = getattr(reference, op)(*wide)
        torch.testing.assert_close(out, exact)
        grads = torch.autograd.grad(out.sum(), arguments[1:])
        for grad, wanted, given in zip(
            grads, torch.autograd.grad(exact.sum(), wide[1:]), arguments[1:], strict=True
        ):
            assert grad.dtype == given.dtype
            torch.testing.assert_close(grad.float(), wanted, rtol=1e-2, atol=1e-2)


def test_clips_of_two_dtypes_and_views_of_clips() -> None:
    buffer = torch.randn(2, 4, 9, 3, 8)
    pred, target = (
        buffer[:, ::2, 1:8:2].requires_grad_(),
        torch.randn(2, 2, 4, 3, 8).bfloat16().requires_grad_(),
    )
    grads = torch.autograd.grad(run("motion_loss", pred, target, motion_weight=2.0), (pred, target))
    exact = reference.motion_loss(pred.double(), target.double(), motion_weight=2.0)
    wanted = torch.autograd.grad(exact, (pred, target))
    torch.testing.assert_close(
        run("motion_loss", pred, target, motion_weight=2.0).double(), exact, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(grads, wanted, rtol=1e-2, atol=1e-6)


def test_still_clips_have_no_direction() -> None:
    """A zero difference must not divide by zero, forward or backward."""
    pred, target = torch.ones(1, 2, 3, 2, 4, requires_grad=True), torch.randn(1, 2, 3, 2, 4)
    loss = run("motion_loss", pred, target)
    torch.testing.assert_close(loss, reference.motion_loss(pred, target))
    got, wanted = (
        torch.autograd.grad(value, pred)[0] for value in (loss, reference.motion_loss(pred, target))
    )
    # numbers around 1e5, since a clamped norm is 1e-8; those of the middle frame are differences of such
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


FAR = 1 << 31  # elements between rows; the pages in between are never touched


def far_apart(*shape: int) -> torch.Tensor:
    """bfloat16 zeros of `shape` whose second dimension has a stride of FAR, filled with random numbers."""
    row = math.prod(shape[2:])
    memory = mmap.mmap(-1, 2 * (FAR * (shape[1] - 1) + row))
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)
    inner = [math.prod(shape[i + 1 :]) for i in range(2, len(shape))]
    view = flat.as_strided(shape, (row, FAR, *inner))
    return view.copy_(torch.randn(shape))


@pytest.mark.parametrize("op", emulated.OPS)
def test_offsets_beyond_two_billion_elements(op: str) -> None:
    """The same bits as from dense copies, forward and backward."""
    if op == "motion_loss":
        x, y, others, options = far_apart(1, 2, 3, 2, 4), far_apart(1, 2, 3, 2, 4), (), {"motion_weight": 2.0}
    elif op == "qk_norm_rope":
        x, y = far_apart(1, 3, 2, 16), far_apart(1, 3, 2, 16)
        others = (None, None, tuple(torch.ones(n) for n in (3, 1, 1)))
        options = {"axes_dim": (8, 4, 4), "norm": "per_head", "rotate_from": 0, "interleaved": True}
    else:
        x, y, others, options = far_apart(1, 3, 16), far_apart(1, 3, 16), (torch.randn(1, 16),), {}
    results = []
    for tensors in ((x, y), (x.contiguous(), y.contiguous())):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = run(op, *leaves, *others, **options)
        out = sum(o.sum() for o in out) if isinstance(out, tuple) else out.sum()
        results.append([out.detach(), *torch.autograd.grad(out, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def accepts(op: str, *arguments) -> bool:
    """Whether the binding takes tensors this large."""
    emulated.load(op)
    try:
        getattr(torch.ops.fym_emulated, op)(*arguments)
    except RuntimeError as error:
        if "at most 8192" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dispatch_knows_what_a_block_can_hold(dtype: torch.dtype) -> None:
    """The dispatcher keeps back what the binding refuses, and nothing else: at both sides of the limit."""
    for width in (8192, 8193):
        x = torch.zeros(1, 1, width, dtype=dtype)
        assert accepts("modulated_norm", x, x[0], x[0], 1e-6) == (modulated_norm._cuda_limit(x) == "")
    unit = 32 // dtype.itemsize
    sizes = (
        (64, 128),
        (65, 128),
        (8192 // unit, 2),
        (8192 // unit + 1, 2),
        (1, 256 * unit),
        (1, 256 * unit + 2),
    )
    taken = []
    for heads, dim in sizes:
        query, table = torch.zeros(1, 1, heads, dim, dtype=dtype), torch.zeros(2, dim // 2)
        place = ([1, 1, 1], [dim, 0, 0], False)
        taken.append(accepts("qk_norm_rope", query, query, None, None, table, *place, 1e-6, "none", 0, True))
        assert taken[-1] == (qk_norm_rope._cuda_limit(query) == ""), (heads, dim)
    assert taken == [True, False] * 3


@pytest.mark.parametrize("next_one", ["triton", "reference"])
def test_what_a_block_cannot_hold_runs_on_the_next_backend(next_one: str, monkeypatch, caplog) -> None:
    """One log line, however many calls; asked for by name, the backend is refused with the reason."""
    monkeypatch.setattr(backends, "_natural", lambda device: ("cuda", "triton"))
    monkeypatch.setattr(backends, "_told", set())
    query = torch.randn(1, 2, 70, 128)
    calls = {
        "modulated_norm": (torch.randn(1, 2, 8200), torch.randn(1, 8200), torch.randn(1, 8200)),
        "qk_norm_rope": (query, query, None, None, tuple(torch.ones(n) for n in (2, 1, 1))),
    }
    for op, arguments in calls.items():
        options = {"axes_dim": WAN} if op == "qk_norm_rope" else {}
        function, exact = getattr(fym_kernels, op), getattr(reference, op)
        ran = []

        def triton(*args, note=ran, exact=exact, **kwargs):  # stands in: here it only has to be chosen
            note.append("triton")
            return exact(*args, **kwargs)

        with emulated.as_cuda(op):
            if next_one == "triton":
                backends.register(op, "triton", triton)
            else:
                backends._kernels[op].pop("triton", None)
            for _ in range(2):
                torch.testing.assert_close(function(*arguments, **options), exact(*arguments, **options))
            assert ran == (["triton"] * 2 if next_one == "triton" else [])
            with pytest.raises(backends.BackendError, match=r"cannot run on backend 'cuda'.*at most 8192"):
                function(*arguments, **options, backend="cuda")
            first, last = arguments[0], arguments[0][..., :64]
            assert (backends.selected(op, first), backends.selected(op, last)) == (next_one, "cuda")
    assert len(caplog.messages) == 2
    for op, message in zip(calls, caplog.messages, strict=True):
        assert (
            message.startswith(f"{op} runs on backend {next_one!r}: the cuda kernel holds")
            and "\n" not in message
        )
