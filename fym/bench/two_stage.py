"""Two-stage tuning as one writes it with diffusers and PEFT alone: stock modules, eager, every head adapted.

First the look on single frames, then the motion with the adapter of the look active. Data, noise, losses,
optimiser, its rate and the number of steps are those of `fym train` with the same configuration; there are no
kinds of heads and no time positions, since neither library knows them. alpha = rank, as in every preset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fym.bench import naive
from fym.config import Config
from fym.families import Family
from fym.material import Material, SparseClip
from fym.runlog import STAGES
from fym.stage import rate_factor


def tune(family: Family, config: Config, material: Material, *, all_frames: bool = False) -> list[float]:
    """Both stages on the family's transformer, which keeps the adapters; the loss of each step.

    all_frames: the second stage sees the whole clip at every step, instead of the picked frames.
    """
    generator = torch.Generator().manual_seed(config.tune.seed)
    torch.manual_seed(config.tune.seed)  # PEFT draws its A from the global generator
    sparse = None if all_frames else SparseClip(material, config.temporal)
    schedule, losses = family.schedule, []
    for number, name in enumerate(STAGES):
        settings = config.spatial if name == "spatial" else config.temporal
        motion_weight = 0.0 if name == "spatial" else config.temporal.motion_weight
        trained = naive.add_adapters(family.transformer, settings.rank, STAGES[: number + 1], std=0.0)
        optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay)
        for step in range(1, settings.steps + 1):
            if name == "spatial":
                latents = draw_frames(material, settings.batch_size, generator)
            else:
                latents = material.latents if sparse is None else sparse.draw(generator)[0]
                latents = latents.expand(settings.batch_size, *latents.shape)
            sigma = schedule.draw(len(latents), generator, config.tune.noise)
            noise = torch.randn(latents.shape, generator=generator)
            loss = naive.tuning_loss(
                family.transformer,
                schedule.add_noise(latents, noise, sigma),
                schedule.target(latents, noise, sigma),
                schedule.timestep(sigma),
                material.text,
                schedule.weight(sigma, config.tune.weighting),
                motion_weight,
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.tune.grad_clip or float("inf"))
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate_factor(
                step, settings.steps, config.tune.decay
            )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    return losses


def draw_frames(material: Material, count: int, generator: torch.Generator) -> Tensor:
    """(count,C,1,h,w) latents of frames encoded alone, drawn with replacement."""
    index = torch.randint(material.num_frames, (count,), generator=generator)
    return material.frame_latents[index]
