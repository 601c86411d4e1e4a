"""Timing several implementations of one thing side by side, and what each keeps in memory."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fym import memory

SHORTEST_SAMPLE = 0.02  # seconds: shorter calls are repeated within one sample
LONG = 1.0  # seconds: such a call is warm after one

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h

Call = Callable[[], Any]


@dataclass
class Timing:
    """Seconds of one call, one sample a round."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median; 0 of fewer than three samples."""
        if len(self.samples) < 3:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.median

    def as_dict(self) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "spread": round(self.spread, 4),
            "rounds": len(self.samples),
            "samples_s": [float(f"{sample:.5g}") for sample in self.samples],
        }


def interleave(sides: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """Times every side once a round, each round starting with the next side, after one call to warm up.

    A drift of the machine (frequency, neighbours) then meets all sides alike.
    """
    repeats = {}
    for name, call in sides.items():
        taken = _seconds(call, 1)
        if taken < LONG:
            taken = _seconds(call, 1)
        repeats[name] = math.ceil(SHORTEST_SAMPLE / max(taken, 1e-6))
    timings = {name: Timing() for name in sides}
    names = list(sides)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                gc.collect(0)
                timings[name].samples.append(_seconds(sides[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return timings


def _seconds(call: Call, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def keep_freed_memory() -> bool:
    """Lets glibc's malloc keep what is freed for the next allocation, for the rest of the process.

    As it comes, it hands large blocks back to the system or not, depending on what was freed before. Touching
    fresh memory costs several times the copy itself, so the same call can take 5 or 20 ms. False without it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def step(forward: Call, leaves: Sequence[Tensor], grads: Sequence[Tensor] | None = None) -> Call:
    """Forward and backward as one call: the gradients of all `leaves`, thrown away.

    grads: of the outputs; a scalar loss needs none.
    """

    def run() -> tuple[Tensor, ...]:
        out = forward()
        outputs = (out,) if isinstance(out, Tensor) else tuple(out)
        return torch.autograd.grad(outputs, list(leaves), grads)

    return run


def without_grad(forward: Call) -> Call:
    def run() -> Any:
        with torch.no_grad():
            return forward()

    return run


def saved_bytes(forward: Call, excluded: Sequence[Tensor] = ()) -> int:
    """Bytes that the graph of `forward()` keeps for its backward: unique storages of saved tensors.

    excluded: tensors that exist anyhow, such as weights. A block's input counts where it is saved.
    """
    known = {_storage(tensor) for tensor in excluded}
    sizes: dict[int, int] = {}
    held = []  # until the end, so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.untyped_storage())
        if _storage(tensor) not in known:
            sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return sum(sizes.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def extra_rss(call: Call) -> float:
    """MiB by which the process grew at most during the call; where malloc is not glibc's, what the heap held
    free is not counted."""
    gc.collect()
    cpu = torch.device("cpu")
    memory.reset_peak(cpu)
    before = memory.peak(cpu)["rss_mib"]
    call()
    return round(memory.peak(cpu)["rss_mib"] - before, 1)
