"""The processes of one run, as torchrun and accelerate start them: what each does and what they exchange.

All draw the same random numbers; each works on its share of the samples of a step, and the gradients are
added up, so that all hold the same adapters. The first process alone writes. Started otherwise there is one
process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fym.config import Config
from fym.errors import UserError
from fym.families.loading import pick_device

LONGEST_STEP = timedelta(minutes=10)  # after which a process that does not answer counts as lost
LONGEST_WAIT = timedelta(days=1)  # for what the first process does alone: encode, classify, make samples


@dataclass(frozen=True)
class Ranks:
    """This process's number, 0 ... size - 1, among the `size` processes of the run.

    store: torch's, common to all; patient: a group that waits longer. Every method that exchanges something
    must be called by all processes, and raises UserError where one is gone.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    patient: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, samples: int) -> slice:
        """The samples of a step that this process works on, perhaps none; all shares make the whole."""
        return slice(samples * self.rank // self.size, samples * (self.rank + 1) // self.size)

    def sum(self, figures: Sequence[float]) -> list[float]:
        """Numbers added up over the processes."""
        if self.size == 1:
            return list(figures)
        total = torch.tensor(figures, dtype=torch.float64)
        with _answered():
            dist.all_reduce(total)
        return list(total.tolist())

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with _answered():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Adds up the gradients over the processes, in place; those of a process without samples are 0."""
        if self.size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        with _answered():
            dist.all_reduce(flat)
        for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            with _answered():
                dist.all_reduce(torch.zeros(1), group=self.patient)

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """A block that the first process goes through before the others, which find the files it wrote."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


ALONE = Ranks()


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


def check_shares(config: Config, ranks: Ranks) -> None:
    """UserError unless every process has samples to work on and a device to do it."""
    if ranks.size == 1:
        return
    small = [
        f"{name}.batch_size={ranks.size}"
        for name, stage in (("spatial", config.spatial), ("temporal", config.temporal))
        if stage.steps and stage.batch_size < ranks.size
    ]
    if small:
        raise UserError(
            f"{ranks.size} processes have too few samples to share",
            "each takes some of a step's",
            f"Use --set {' --set '.join(small)}, or fewer processes",
        )
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


@contextmanager
def _answered() -> Iterator[None]:
    """An exchange; what torch raises for a process that is gone or stuck becomes a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "A process of this run was lost",
            f"it no longer answers ({str(error).splitlines()[0]})",
            "Run the same command again, with as many processes as there are: it goes on after the last "
            "checkpoint",
        ) from error
