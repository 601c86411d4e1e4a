"""The processes of one run, as torchrun and accelerate start them: what each does and what they exchange.

All draw the same random numbers; each works on its share of a step's samples, or on a band of some where
there are fewer samples than processes, and the gradients are added up, so that all hold the same adapters.
The first process alone writes. Started otherwise there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fym.bands import Band, answered
from fym.config import Config
from fym.errors import UserError
from fym.families.loading import pick_device

LONGEST_STEP = timedelta(minutes=10)  # after which a process that does not answer counts as lost
LONGEST_WAIT = timedelta(days=1)  # for what the first process does alone: encode, classify, make samples
Axis = Callable[[int], int | None]


@dataclass(frozen=True)
class Ranks:
    """This process's number, 0 ... size - 1, among the `size` processes of the run.

    store: torch's, common to all, None where they are only planned for; patient: a group that waits longer.
    Every method that exchanges something must be called by all processes, and raises UserError where one is
    gone.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    patient: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def bands(self, stage: str, samples: int, axis: Axis) -> int:
        """Into how many bands the samples of a step are split: as few as give every process work.

        axis(c): along which axis c bands can be made, None for none. UserError where some would be idle.
        """
        for count in range(1, self.size + 1):
            teams, rest = divmod(self.size, count)
            if not rest and teams <= samples and (count == 1 or axis(count) is not None):
                return count
        raise UserError(
            f"{self.size} processes are too many for the {stage} stage",
            f"a step of {samples} samples cannot be shared by all of them, and this model and clip size do "
            "not allow bands of equal size that would do",
            f"Use fewer processes, or a larger --set {stage}.batch_size",
        )

    def share(self, stage: str, samples: int, axis: Axis) -> tuple[slice, Band | None]:
        """The samples of a step that this process works on, and the band of them, if not all. See `bands`."""
        bands = self.bands(stage, samples, axis)
        teams, team = self.size // bands, self.rank // bands
        mine = slice(samples * team // teams, samples * (team + 1) // teams)
        along = axis(bands) if bands > 1 else None
        if along is None:
            return mine, None
        group = None if self.store is None else _team(bands)
        return mine, Band(along, self.rank % bands, bands, group)

    def sum(self, figures: Sequence[float]) -> list[float]:
        """Numbers added up over the processes."""
        if self.size == 1:
            return list(figures)
        total = torch.tensor(figures, dtype=torch.float64)
        with answered():
            dist.all_reduce(total)
        return list(total.tolist())

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with answered():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Adds up the gradients over the processes, in place."""
        if self.size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        with answered():
            dist.all_reduce(flat)
        for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes, for what torch shares out among their devices."""
        return init_device_mesh(device.type, (self.size,))

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            with answered():
                dist.all_reduce(torch.zeros(1), group=self.patient)

    @contextmanager
    def first_ahead(self, *, together: bool = False) -> Iterator[None]:
        """A block that the first process goes through before the others, which find the files it wrote; or
        all of them `together`."""
        if not self.first and not together:
            self.wait()
        yield
        if self.first and not together:
            self.wait()


ALONE = Ranks()


@cache
def _team(size: int) -> Any:
    """The group of this process where neighbours make groups of `size`; made by all at the same time."""
    group, _ = dist.new_subgroups(size, timeout=LONGEST_STEP)
    return group


@cache
def launched() -> Ranks:
    """The processes of this run, joined: as RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say,
    or this one alone where they are not set. Each gets the GPU of its LOCAL_RANK as its current one."""
    if not several():
        return ALONE
    cuda = torch.cuda.is_available()
    if cuda and _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=LONGEST_STEP)))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_STEP)
        patient = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "The processes of this run do not find each other",
            str(error).splitlines()[0],
            "Start them with torchrun --nproc-per-node N -m fym train ..., or unset WORLD_SIZE",
        ) from error
    return Ranks(rank, size, store, patient)


def several() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def speaks() -> bool:
    """Whether this process is the first of the run's to fail, and so the one that says why it ends."""
    store = launched().store if launched.cache_info().currsize else None
    if store is None:
        return True
    number = str(launched().rank)
    try:
        return bool(store.compare_set("failed", "", number) == number.encode())
    except RuntimeError:  # the store went with the process that held it
        return True


def leave() -> None:
    """Ends the connection to the other processes, when all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_device(config: Config, ranks: Ranks) -> None:
    """UserError unless every process has a device of its own."""
    if ranks.size == 1:
        return
    device = pick_device(config.model.device)
    if device.type == "cuda" and device.index is not None:
        raise UserError(
            f"{device} is one GPU and {ranks.size} processes need one each",
            "they would wait for each other",
            "Use --device cuda",
        )
    if device.type == "cuda" and _local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"Process {_local_rank()} of this machine has no GPU",
            f"torch sees {torch.cuda.device_count()}",
            f"Use --nproc-per-node {torch.cuda.device_count()}, or --device cpu",
        )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
