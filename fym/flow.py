"""Flow matching with a shifted schedule: noise levels, noising, velocity target and loss weights.

sigma in (0, 1) is the noise level, 1 = pure noise; x_t = (1 - sigma) x0 + sigma eps; velocity v = eps - x0;
timestep t = 1000 sigma. B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowMatching:
    """The training schedule of a model family: sigma = shift u / (1 + (shift - 1) u) with u in (0, 1)."""

    shift: float = 5.0
    num_timesteps: int = 1000

    def sigma(self, u: Tensor) -> Tensor:
        """The shifted noise level of uniform levels `u`."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def draw(
        self, batch: int, generator: torch.Generator, noise: str = "uniform", lowest: float = 0.0
    ) -> Tensor:
        """(B,) fp32 noise levels on the CPU. noise: "uniform" u, or "logit_normal" u = sigmoid(n).

        The range of u is narrowed to that of levels from `lowest` up.
        """
        if noise == "uniform":
            u = torch.rand(batch, generator=generator)
        elif noise == "logit_normal":
            u = torch.randn(batch, generator=generator).sigmoid()
        else:
            raise ValueError(f'noise is "{noise}"; allowed: "uniform", "logit_normal"')
        floor = lowest / (self.shift - (self.shift - 1) * lowest)  # sigma(floor) = lowest
        return self.sigma(floor + (1 - floor) * u)

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.num_timesteps

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """clean, noise (B,...); sigma (B,)."""
        sigma = sigma.view(-1, *[1] * (clean.ndim - 1))
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the model should predict: the velocity."""
        return noise - clean

    def weight(self, sigma: Tensor, weighting: str = "bell") -> Tensor:
        """(B,) loss weights: "bell", largest in the middle and 0 at pure noise, or "none".

        bell: w(t) proportional to exp(-2 ((t - 500) / 1000)^2), shifted to minimum 0 and scaled to mean 1
        over the 1000 shifted training levels; the largest value is then about 2.08 for shift 5.
        """
        if weighting == "none":
            return torch.ones_like(sigma)
        if weighting != "bell":
            raise ValueError(f'weighting is "{weighting}"; allowed: "bell", "none"')
        return (_bell(sigma) - math.exp(-0.5)) / self._bell_mean

    @cached_property
    def _bell_mean(self) -> float:
        levels = self.sigma(1 - torch.arange(self.num_timesteps, dtype=torch.float64) / self.num_timesteps)
        return float((_bell(levels) - math.exp(-0.5)).mean())


def _bell(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)
