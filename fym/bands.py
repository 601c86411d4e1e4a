"""A forward pass that several processes share: each has a band of the picture, and attention sees it all.

Between tokens only self-attention exchanges anything. Before it each process sends the heads of its tokens to
the processes that attend with them and gets the tokens of its own heads; after it the way back (Ulysses,
arXiv 2309.14509). Text in the same sequence is computed by every process, but attends with its own heads
only, so that the gradients of all processes add up for the text as well.
B batch, S tokens of the latents in all, L of the text, c bands, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fym.errors import UserError


@dataclass(frozen=True)
class Band:
    """Number `index` of the `count` equal parts of one axis (0 time, 1 rows, 2 columns) of a clip's latents.

    group: the processes with the bands of the clip, in their order. All of them must make the same calls;
    None: nothing is exchanged, where only shapes are wanted.
    """

    axis: int
    index: int
    count: int
    group: Any

    def of(self, latents: Tensor) -> Tensor:
        """The band of latents (...,F',h,w)."""
        dim = self.axis - 3
        size = latents.shape[dim] // self.count
        return latents.narrow(dim, self.index * size, size)

    def whole(self, part: Tensor) -> Tensor:
        """All bands, from each process's own (...,F',h,w). Gradients reach the own one alone: every process
        computes the same loss of the whole."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.count)]
        if self.group is not None:
            with answered():
                dist.all_gather(parts, part.detach().contiguous(), self.group)
        parts[self.index] = part
        return torch.cat(parts, self.axis - 3)

    def by_heads(self, tokens: Tensor) -> Tensor:
        """(...,B,S/c,H,D), the band's tokens, to (...,B,S,H/c,D), all tokens of some heads."""
        parts = tokens.unflatten(-2, (self.count, -1)).movedim(-3, 0)
        return _exchange(parts, self.group).movedim(0, -4).flatten(-4, -3)

    def by_tokens(self, heads: Tensor) -> Tensor:
        """The reverse of `by_heads`."""
        parts = heads.unflatten(-3, (self.count, -1)).movedim(-4, 0)
        return _exchange(parts, self.group).movedim(0, -3).flatten(-3, -2)

    def text_by_heads(self, tokens: Tensor) -> Tensor:
        """(...,B,L,H,D), which every process has, to (...,B,L,H/c,D), the heads that `by_heads` gives."""
        return tokens.chunk(self.count, -2)[self.index]

    def text_by_tokens(self, heads: Tensor) -> Tensor:
        """The reverse of `text_by_heads`."""
        parts = heads.expand(self.count, *heads.shape)  # all of it to each, whose gradients come back
        return _exchange(parts, self.group).movedim(0, -3).flatten(-3, -2)


class _Exchange(torch.autograd.Function):
    """Part number k goes to process k, and the gradient comes back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _all_to_all(grad, ctx.group), None


def _exchange(parts: Tensor, group: Any) -> Tensor:
    out: Tensor = _Exchange.apply(parts, group)
    return out


def _all_to_all(parts: Tensor, group: Any) -> Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    if group is not None:
        with answered():
            dist.all_to_all_single(received, parts, group=group)
    return received


@contextmanager
def answered() -> Iterator[None]:
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
