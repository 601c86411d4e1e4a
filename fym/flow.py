"""What a model is trained to undo: noise levels, noising, the model's target and loss weights.

A noise level sigma in (0, 1] grows with the noise, 1 = pure noise; timestep t = T sigma, T = 1000. Which mix
of clip and noise a level means, and what the model predicts, is the model family's schedule. B batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class Schedule(ABC):
    """Random levels, and for given ones the noisy clip, its target and its weight."""

    num_timesteps: int

    @abstractmethod
    def sigma(self, u: Tensor) -> Tensor:
        """The noise level of uniform levels `u` in (0, 1)."""

    @abstractmethod
    def uniform(self, sigma: float) -> float:
        """The reverse of `sigma`."""

    @abstractmethod
    def timestep(self, sigma: Tensor) -> Tensor:
        """What the model is told of noise levels (B,)."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """clean, noise (B,...); sigma (B,)."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the model should predict. Shapes as of `add_noise`."""

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
        floor = self.uniform(lowest)
        return self.sigma(floor + (1 - floor) * u)

    def weight(self, sigma: Tensor, weighting: str = "bell") -> Tensor:
        """(B,) loss weights: "bell", largest in the middle and 0 at pure noise, or "none".

        bell: w(t) proportional to exp(-2 ((t - 500) / 1000)^2), shifted to minimum 0 and scaled to mean 1
        over the 1000 training levels; the largest value is then about 2.08 for flow matching of shift 5.
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


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """x_t = (1 - sigma) x0 + sigma eps; the target is the velocity eps - x0.

    sigma = shift u / (1 + (shift - 1) u) with u in (0, 1).
    """

    shift: float = 5.0
    num_timesteps: int = 1000

    def sigma(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def uniform(self, sigma: float) -> float:
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.num_timesteps

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        sigma = _beside(sigma, clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - clean


@dataclass(frozen=True)
class VPrediction(Schedule):
    """x_t = a x0 + b eps with a^2 + b^2 = 1; the target is v = a eps - b x0 (Salimans and Ho 2022, app. D).

    alphas_cumprod: a^2 of the T trained timesteps 0, 1, ... Level sigma stands for the last one below
    T sigma, so that 1 is the last timestep of all.
    """

    alphas_cumprod: Sequence[float]

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.alphas_cumprod)

    def sigma(self, u: Tensor) -> Tensor:
        return u

    def uniform(self, sigma: float) -> float:
        return sigma

    def timestep(self, sigma: Tensor) -> Tensor:
        return ((sigma * self.num_timesteps).ceil() - 1).clamp(min=0)

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        a, b = self._mix(sigma, clean)
        return a * clean + b * noise

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        a, b = self._mix(sigma, clean)
        return a * noise - b * clean

    def _mix(self, sigma: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        squared = self._table.to(clean.device)[self.timestep(sigma).long().to(clean.device)]
        return _beside(squared.sqrt(), clean), _beside((1 - squared).sqrt(), clean)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(list(self.alphas_cumprod), dtype=torch.float32)


def _beside(values: Tensor, clean: Tensor) -> Tensor:
    """(B,) as (B,1,...), to go with `clean` (B,...)."""
    return values.view(-1, *[1] * (clean.ndim - 1))


def _bell(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)
