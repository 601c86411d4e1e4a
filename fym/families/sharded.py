"""A frozen base whose weights are shared out among the processes of a run (PyTorch's FSDP2).

Each process keeps its part of every matrix in the transformer's blocks. While a block computes, forward and
backward, its whole matrices are there; the processes fetch them from each other, so all must do the same
passes. Inside a block's forward its weights are plain tensors: nothing else changes, no result either.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from fym.bands import answered


def shard(transformer: Any, blocks: Iterable[Any], mesh: DeviceMesh) -> None:
    """Shares out the matrices of `blocks`, which are the transformer's, among the processes of `mesh`; the
    rest (norms, biases) stays whole in each. All processes must call it."""
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=set(block.parameters()).difference(matrices(block)))
    # It has no weights of its own; as the common root it fetches those of the next block in time.
    rest = {p for p in transformer.parameters() if not isinstance(p, DTensor)}
    fully_shard(transformer, mesh=mesh, ignored_params=rest)
    warnings.filterwarnings("ignore", ".*returned a view tensor")  # nobody changes one in place


def matrices(block: Any) -> list[Parameter]:
    """What of a block is shared out."""
    return [p for p in block.parameters() if p.ndim == 2]


def kind_of(module: Any) -> type:
    """The module's class, where it is sharded the one that FSDP2 made a subclass of."""
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


@contextmanager
def together() -> Iterator[None]:
    """A block with passes of a sharded model, in which a lost process becomes a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise  # something else went wrong
        with answered():
            raise
