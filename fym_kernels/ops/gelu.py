"""gelu: the activation of a DiT's feed-forward network.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415), section 2, the approximation
with tanh, which Wan, HunyuanVideo and CogVideoX have. PyTorch's own takes five times as long on a CPU as the
memory it moves; on a GPU it is a single pass, as the Triton kernel is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.ops import native
from fym_kernels.reference.gelu import check


def gelu(x: Tensor, *, backend: str | None = None) -> Tensor:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 of every element.

    x: any shape, any float dtype; returns the same. Keeps x for the backward pass. The native kernel copies
    tensors that are not contiguous. Raises ValueError unless x is a floating tensor.
    """
    return backends.choose("gelu", x, backend)(x)  # type: ignore[no-any-return]


def _run(op: Any, x: Tensor) -> Tensor:
    check(x)
    out: Tensor = op(x)
    return out


def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(op: Any, ctx: Any, grad: Tensor) -> Tensor | None:
    [x] = ctx.saved_tensors
    return op(grad, x) if ctx.needs_input_grad[0] else None


backends.register("gelu", "reference", reference.gelu)
native.describe(
    "gelu",
    run=_run,
    fakes={"gelu": _fake, "gelu_backward": _fake_backward},
    save=_save,
    backward=_backward,
)
