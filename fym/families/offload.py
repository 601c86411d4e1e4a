"""Blocks whose frozen weights stay in CPU memory and come to the device just before the block runs.

Two slots on the device hold the block that runs and the one that runs after it, which is copied meanwhile on
a stream of its own; which one that is, the order of the pass before tells. Nothing is copied back. A block
whose backward pass follows later must run again there (`tune.recompute` = "block"), for its slot is used by
others in between; autograd refuses a weight that was written over since it was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fym.families.quantised import QuantisedLinear

CHUNK = 64 << 20  # bytes: pinned memory comes in powers of two
ALIGNED = 256  # bytes


class _Place(NamedTuple):
    """A tensor of a block, and the bytes of a slot that it takes."""

    module: nn.Module
    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int


class Offload:
    """Takes the weights of `blocks` away; each gets them on `device` while it runs.

    The heavy ones, that is: those of its linear layers. All else of the blocks stays where it is. On the CPU
    the same happens with copies, which gains nothing. loads, late: blocks copied so far, and how many of
    them only when they were needed.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device, self.loads, self.late = device, 0, 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: list[Any] = [None, None]  # events, one for each slot
        self._slots: list[Tensor] = []
        self._holds = [-1, -1]  # the number of the block in each slot
        self._last = (-1, -1)  # the last two blocks that ran
        self._next: dict[tuple[int, int], int] = {}  # which one ran after these two
        self._places = [_places(block) for block in blocks]
        self._homes: list[list[Tensor]] = []
        for number, block in enumerate(blocks):
            self._homes.append(_take(self._places[number], pin=self._stream is not None))
            block.register_forward_pre_hook(lambda *_, number=number: self._enter(number))
            block.register_forward_hook(lambda *_, number=number: self._leave(number), always_call=True)

    def _enter(self, number: int) -> None:
        before, self._last = self._last, (self._last[1], number)
        self._next[before] = number
        if number not in self._holds:
            self.late += 1
            self._load(number, self._other(before[1]))
        slot = self._holds.index(number)
        if self._copied[slot] is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[slot])
        for place in self._places[number]:
            bytes_of = self._slots[slot][place.start : place.stop]
            _set(place, bytes_of.view(place.dtype).view(place.shape))
        ahead = self._next.get(self._last, (number + 1) % len(self._places))
        if ahead not in self._holds:
            self._load(ahead, self._other(number))

    def _leave(self, number: int) -> None:
        for place in self._places[number]:
            _set(place, None)

    def _other(self, number: int) -> int:
        """The slot that this block is not in."""
        return 1 - self._holds.index(number) if number in self._holds else 0

    @torch.no_grad()
    def _load(self, number: int, slot: int) -> None:
        if not self._slots:
            size = max(places[-1].stop for places in self._places)
            self._slots = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2)]
        self._holds[slot] = number
        self.loads += 1
        with self._copying():
            start = 0
            for chunk in self._homes[number]:
                self._slots[slot][start : start + len(chunk)].copy_(chunk, non_blocking=True)
                start += len(chunk)
            if self._stream is not None:
                self._copied[slot] = self._stream.record_event()

    def _copying(self) -> AbstractContextManager[Any]:
        """After all that was asked of the device up to now, which may use the slot's former block."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self._stream)


def spread(blocks: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """`count` of the blocks, evenly spread so that each is copied while several others run; -1: all."""
    count = len(blocks) if count < 0 else min(count, len(blocks))
    return [blocks[number * len(blocks) // count] for number in range(count)]


def saved_bytes(blocks: Sequence[nn.Module]) -> tuple[int, int]:
    """(bytes that are copied in one pass, bytes of the device that are free thereby) of offloaded blocks."""
    sizes = [_places(block)[-1].stop for block in blocks]
    return sum(sizes), max(0, sum(sizes) - 2 * max(sizes, default=0))


def _places(block: nn.Module) -> list[_Place]:
    places, start = [], 0
    for module in block.modules():
        names = ("packed", "scales") if isinstance(module, QuantisedLinear) else ()
        for name in ("weight",) if type(module) is nn.Linear else names:
            tensor = getattr(module, name)
            places.append(_Place(module, name, tensor.dtype, tensor.shape, start, start + tensor.nbytes))
            start = -(-(start + tensor.nbytes) // ALIGNED) * ALIGNED
    return places


def _take(places: Sequence[_Place], *, pin: bool) -> list[Tensor]:
    """The bytes of a block, which loses them, in chunks."""
    home = torch.empty(places[-1].stop, dtype=torch.uint8)
    for place in places:
        tensor = getattr(place.module, place.name).detach()
        home[place.start : place.stop].copy_(tensor.contiguous().flatten().view(torch.uint8))
        _set(place, None)
    return [chunk.pin_memory() for chunk in home.split(CHUNK)] if pin else [home]


def _set(place: _Place, value: Tensor | None) -> None:
    module, name = place.module, place.name
    if name in module._buffers:
        module._buffers[name] = value
    else:
        module._parameters[name] = None if value is None else nn.Parameter(value, requires_grad=False)
