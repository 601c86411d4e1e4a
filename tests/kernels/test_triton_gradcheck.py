"""Gradients by finite differences in float64; schemas, fake kernels and tracing of the Triton ops."""

from __future__ import annotations

from typing import Any

import cases
import parity
import pytest
import torch
from interpreter import interpreted, poisoned_memory  # noqa: F401
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = interpreted()

import fym_kernels  # noqa: E402
from fym_kernels.triton.library import NAMESPACE  # noqa: E402

SMALL = {
    "qk_norm_rope": {"grid": (2, 1, 1), "heads": 3, "axes_dim": (2, 2, 0)},
    "modulated_norm": {"shape": (1, 2, 6)},
    "gated_residual": {"shape": (1, 3, 4)},
    "gelu": {"shape": (3, 5)},
    "motion_loss": {"shape": (1, 1, 3, 1, 4), "motion_weight": 0.7},
    "lora_qkv": {"heads": 2, "head_dim": 4, "active": (1,), "rank": 2, "tokens": 2, "d_in": 5},
    "lora_linear": {"heads": 2, "head_dim": 4, "active": (0,), "rank": 2, "side": "in", "tokens": 2},
    "head_attention": {
        "kinds": (1, 2), "grid": (2, 1, 3), "dim": 4, "location_window": 1, "first_frame_sink": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("op", SMALL)
def test_finite_differences(op: str) -> None:
    inputs = cases.MAKERS[op](torch.float64, **SMALL[op])
    leaves, spec = pytree.tree_flatten(tuple(inputs))
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]

    def function(*tensors: Tensor) -> Any:
        values = list(leaves)
        for i, x in zip(at, tensors, strict=True):
            values[i] = x
        arguments, options = pytree.tree_unflatten(values, spec)
        return getattr(fym_kernels, op)(*arguments, **options, backend="triton")

    assert torch.autograd.gradcheck(function, [leaves[i] for i in at], fast_mode=True)


class _Record(TorchDispatchMode):
    """Notes the calls of our ops, as they arrive below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", SMALL)
def test_opcheck(op: str) -> None:
    """Schema, fake kernel, autograd registration and tracing agree with the kernels, forward and backward."""
    inputs = cases.MAKERS[op](torch.float32, **SMALL[op])
    with _Record() as record:
        parity.run(op, inputs, "triton")
    wanted = {
        x.data_ptr() for x in pytree.tree_leaves(tuple(inputs)) if isinstance(x, Tensor) and x.requires_grad
    }
    assert {func._schema.name for func, _ in record.calls} >= {
        f"{NAMESPACE}::{op}",
        f"{NAMESPACE}::{op}_backward",
    }
    for func, args in record.calls:
        forward = not func._schema.name.endswith("_backward")

        def own(x: Any, forward: bool = forward) -> Any:
            return (
                x.detach().clone().requires_grad_(forward and x.data_ptr() in wanted)
                if isinstance(x, Tensor)
                else x
            )

        torch.library.opcheck(func, pytree.tree_map(own, args))


@pytest.mark.parametrize("op", [*SMALL, "head_scores"])
def test_traces_without_a_graph_break(op: str) -> None:
    """With fixed sizes, and with symbolic ones."""
    torch._dynamo.reset()
    inputs = next(cases.of(op)).inputs(torch.float32)

    def step(arguments: Any, options: Any) -> Any:
        return getattr(fym_kernels, op)(*arguments, **options, backend="triton")

    expected = pytree.tree_leaves(step(*inputs))
    for dynamic in (False, True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for a, b in zip(pytree.tree_leaves(compiled(*inputs)), expected, strict=True):
            assert torch.equal(a, b)
