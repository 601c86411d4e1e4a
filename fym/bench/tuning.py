"""Whole steps of stage 3 on the embedded model: noise, forward, losses, backward, clipping, AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fym.bench import naive, ours
from fym.bench.cases import runs
from fym.bench.measure import Call, extra_rss, interleave
from fym.bench.table import Goal, Row
from fym.families import Family, load_family
from fym.positions import latent_frames, sparse_frames, time_positions

RANK = 32  # as the preset `tiny` has it
FRAMES, SPARSE = 81, 17
MOTION_WEIGHT = 1.0

Loss = Callable[..., Tensor]


def training_step(
    family: Family, loss: Loss, parameters: Sequence[Tensor], latents: Tensor, text: Tensor
) -> Call:
    """One optimiser step on `latents` (B,C,F',h,w); `loss` takes noisy, target, timestep, text, weight."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    schedule = family.schedule

    def run() -> None:
        sigma = schedule.draw(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy, target = schedule.add_noise(latents, noise, sigma), schedule.target(latents, noise, sigma)
        value = loss(noisy, target, schedule.timestep(sigma), text, schedule.weight(sigma), MOTION_WEIGHT)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


@contextmanager
def steps(with_compile: bool) -> Iterator[tuple[dict[str, Call], int]]:
    """A training step for each side, to be called inside, and the tokens of the picked frames."""
    family = load_family("embedded")
    text = family.encode_prompts(["a red circle"])
    pixels = torch.zeros(FRAMES, family.default_height, family.default_width, 3, dtype=torch.uint8)
    full = torch.randn_like(family.encode_video(pixels))[None]
    positions = time_positions(sparse_frames(FRAMES, SPARSE), FRAMES)
    picked = full[:, :, : latent_frames(SPARSE)].contiguous()

    stock: Any = copy.deepcopy(family.transformer)
    trained = naive.add_adapters(stock, RANK)

    def naive_loss(model: Any) -> Loss:
        return lambda *arguments: naive.tuning_loss(stock, *arguments, model=model)

    with ExitStack() as inside:

        def our_step(family: Family) -> Call:
            adapters = ours.stage_three_adapters(family.num_layers, family.num_heads, family.head_dim, RANK)
            inside.enter_context(
                family.attention(adapters=[(made, 1.0) for made in adapters], time_positions=positions)
            )
            return training_step(
                family, partial(ours.tuning_loss, family), list(adapters[1].parameters()), picked, text
            )

        calls = {
            "ours": our_step(family),
            "naive": training_step(family, naive_loss(stock), trained, picked, text),
            "naive, all frames": training_step(family, naive_loss(stock), trained, full, text),
        }
        if with_compile:
            model = torch.compile(stock, dynamic=False)
            step = training_step(family, naive_loss(model), trained, picked, text)
            compiled = load_family("embedded")
            compiled.transformer.compile(dynamic=False)
            our_compiled = our_step(compiled)
            if runs(step) and runs(our_compiled):
                calls |= {"compile": step, "ours, compiled": our_compiled}
        yield calls, family.tokens(SPARSE, family.default_height, family.default_width)


def rows(rounds: int, with_compile: bool) -> list[Row]:
    with steps(with_compile) as (calls, tokens):
        timings = interleave(calls, rounds)
        extra = {name: extra_rss(call) for name, call in calls.items()}
    seconds = {name: timing.median for name, timing in timings.items()}
    ratios = {f"× {name}": seconds[name] / seconds["ours"] for name in seconds if name != "ours"}
    detail: dict[str, Any] = {name: timing.as_dict() for name, timing in timings.items()}
    detail |= {"tokens": tokens, "extra_rss_mib": extra}
    return [
        Row(
            "embedded step",
            f"stage-3 step of the embedded model, {SPARSE} of {FRAMES} frames, S = {tokens}",
            "ms",
            {name: value * 1e3 for name, value in seconds.items()},
            ratios,
            [Goal("× naive", ">=", 1.5), Goal("× naive, all frames", ">=", 5)],
            note=f"naive on all frames takes {seconds['naive, all frames'] * 1e3:.4g} ms",
            detail=detail,
        )
    ]
