"""Muon: gradient descent with momentum whose every update of a matrix is made nearly orthogonal.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), and the scale of
Liu et al. (arXiv 2502.16982, section 2.2), with which its updates are as large as AdamW's, so that learning
rates carry over.

The factors of an adapter are many matrices of few shapes, whose smaller side is the rank: here all go through
the iteration together. torch.optim.Muon takes one after the other, in bfloat16: 16 ms for the adapter of the
embedded model, on a CPU without units for it, where this takes 2 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
SCALE = 0.2  # root mean square of an update of AdamW, as a rule
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0; singular values end between about 0.7 and 1.2
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Over matrices only. Parameters without a gradient stay as they are, and so does their momentum."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = MOMENTUM
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"]]
        if any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"Muon is for matrices; the parameters have shapes {sorted(set(shapes))}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. closure: not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, **{k: group[k] for k in ("lr", "weight_decay", "momentum")})

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        buffers = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            buffers.append(state["momentum"])
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        ahead = torch._foreach_lerp(grads, buffers, momentum)  # Nesterov's
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        alike: dict[torch.Size, list[int]] = {}
        for index, p in enumerate(parameters):
            alike.setdefault(p.shape, []).append(index)
        batches = [torch.stack([ahead[i] for i in indices]) for indices in alike.values()]
        for (shape, indices), updates in zip(alike.items(), orthogonal(batches), strict=True):
            step = -lr * SCALE * max(shape) ** 0.5
            torch._foreach_add_([parameters[i] for i in indices], updates.unbind(), alpha=step)


def orthogonal(batches: Sequence[Tensor]) -> list[Tensor]:
    """Matrices U S V^T, batches (N,m,n), as about U V^T, by Newton and Schulz's iteration; zeros stay zeros.

    Every factor of the iteration is a polynomial of the matrix of inner products of rows (or columns, if they
    are fewer), so it works on that small matrix: two products with the large one instead of ten.
    """
    wide = [x.mT if x.shape[-2] > x.shape[-1] else x for x in batches]
    wide = [x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12) for x in wide]
    alike: dict[int, list[int]] = {}
    for index, x in enumerate(wide):
        alike.setdefault(x.shape[-2], []).append(index)
    for indices in alike.values():
        factors = _iterated(torch.cat([wide[i] @ wide[i].mT for i in indices]))
        for i, factor in zip(indices, factors.split([len(wide[i]) for i in indices]), strict=True):
            wide[i] = factor @ wide[i]
    return [x.mT if x.shape != b.shape else x for x, b in zip(wide, batches, strict=True)]


def _iterated(gram: Tensor) -> Tensor:
    """(N,m,m) inner products G of the rows of X to P, such that P X is what the iteration makes of X."""
    a, b, c = COEFFICIENTS
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    total = identity.expand_as(gram)
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
        total = factor @ total
        gram = factor @ gram @ factor
    return total
