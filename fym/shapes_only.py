"""Running the very code on shapes alone: bytes alive and FLOPs of true sizes, without the memory.

Computed, never measured. The bytes are those of live tensors, without what an allocator adds by splitting or
a library takes for itself. The kernels are the CPU's; flash attention on a GPU saves the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@contextmanager
def shapes_only(module: nn.Module) -> Iterator[None]:
    """Inside, tensors have shapes and no memory, those of `module` (made on the meta device) too."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay one
    originals = list(module.parameters())  # alive, so that no two have one id
    with FakeTensorMode(allow_non_fake_inputs=True):
        for original in originals:
            empty = torch.empty(original.shape, dtype=original.dtype)
            made[id(original)] = nn.Parameter(empty, original.requires_grad)
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = made[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        yield


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which does not know the CPU's attention."""
    aten = torch.ops.aten

    def attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def columns(arguments: Sequence[Any], out: Tensor) -> int:
    """Bytes that a convolution on the CPU holds beside its input and its output, from its arguments.

    oneDNN's takes a copy of the input, its channels in blocks of 16; PyTorch's own, for volumes of few
    channels and rows, all the columns of im2col. Both measured.
    """
    x, weight = arguments[:2]
    if not str(torch._C._select_conv_backend(*arguments)).endswith(".Slow3d"):
        return -(-x.shape[1] // 16) * 16 * (x.nbytes // x.shape[1])
    taps: int = weight[0, 0].numel()
    return taps * x.shape[1] * out[:, 0].numel() * x.itemsize if taps > 1 else 0


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages alive, and their peak. host: with what convolutions on the CPU take."""

    def __init__(self, *, host: bool = False) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.host = host
        self._seen: dict[int, Any] = {}

    def track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        if self.host and func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + columns(args, out))
        return out
