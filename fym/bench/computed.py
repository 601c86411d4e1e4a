"""Memory and FLOPs of true sizes from shapes alone: fake tensors run the very code, and no memory is taken.

Computed, never measured. The bytes are those of live tensors, without what an allocator adds by splitting or
a library takes for itself. The kernels are the CPU's; flash attention on a GPU saves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fym_kernels
from fym.bench import naive, ours
from fym.bench.measure import saved_bytes
from fym.bench.shapes import LATENT_CHANNELS, TEXT_TOKENS, WAN_1_3B, WAN_14B, Grid, Width, grid_of, tokens
from fym.shapes_only import LiveBytes, flop_counter, shapes_only

RANK = 16
TEXT_WIDTH = 4096
CLIPS = (
    ("Wan 2.1 1.3B", WAN_1_3B, 17, 480, 832),
    ("Wan 2.1 1.3B", WAN_1_3B, 81, 480, 832),
    ("Wan 2.1 14B", WAN_14B, 17, 480, 832),
    ("Wan 2.1 14B", WAN_14B, 81, 480, 832),
    ("Wan 2.1 14B", WAN_14B, 17, 720, 1280),
    ("Wan 2.1 14B", WAN_14B, 81, 720, 1280),
)


def block_bytes(
    width: Width, grid: Grid, rank: int, dtype: torch.dtype, *, ours_options: dict[str, Any] | None = None
) -> int:
    """Bytes kept for backward by one block; of the naive one, or of ours with these options."""
    module, forward = _block(width, grid, rank, dtype, ours_options)
    with shapes_only(module):
        run, known = forward()
        return saved_bytes(run, known)


def step_flops(width: Width, grid: Grid, rank: int, dtype: torch.dtype) -> int:
    """FLOPs of forward and backward of one of our blocks, read off the reference ops."""
    module, forward = _block(width, grid, rank, dtype, {})
    with shapes_only(module), fym_kernels.use_backend("reference"):
        run, _ = forward()
        with flop_counter() as counter:
            run().sum().backward()
    return counter.get_total_flops()


def _block(
    width: Width, grid: Grid, rank: int, dtype: torch.dtype, ours_options: dict[str, Any] | None
) -> tuple[nn.Module, Callable[[], tuple[Callable[[], Tensor], list[Tensor]]]]:
    """A block without memory, and what gives its forward and the tensors that exist anyhow."""
    with torch.device("meta"):
        stock = naive.Block(width, rank, dtype) if ours_options is None else None
        module = stock or ours.Block(width, rank, dtype, grid, **(ours_options or {}))

    def forward() -> tuple[Callable[[], Tensor], list[Tensor]]:
        hidden = torch.empty(1, tokens(grid), width.d, dtype=dtype, requires_grad=True)
        text, temb = torch.empty(1, TEXT_TOKENS, width.d, dtype=dtype), torch.empty(1, 6, width.d)
        tables = tuple(torch.empty(1, tokens(grid), 1, width.head_dim) for _ in range(2))
        known = [*module.parameters(), *module.buffers(), *tables]
        return lambda: module(hidden, text, temb, tables), known

    return module, forward


@dataclass(frozen=True)
class Step:
    """One step of stage 3 of a whole model: live bytes at most, those of weights and optimiser, and FLOPs.

    recompute: "none", "ffn" (ours only) or "block", which is gradient checkpointing.
    """

    model: str
    frames: int
    height: int
    width: int
    tokens: int
    side: str
    recompute: str
    weights: int
    peak: int
    flops: int


WAYS = (("naive", "none"), ("naive", "block"), ("ours", "none"), ("ours", "ffn"), ("ours", "block"))
FEW, MORE = 2, 4  # layers that are run: all are alike, so the figures are linear in their number


def training_steps(dtype: torch.dtype = torch.bfloat16) -> Iterator[Step]:
    """A step of stage 3 with both adapters, r 16, for every model and clip; naive and ours."""
    for name, width, frames, height, pixels in CLIPS:
        grid = grid_of(frames, height, pixels)
        for side, recompute in WAYS:
            figures = training_step(width, grid, dtype, side, recompute)
            yield Step(name, frames, height, pixels, tokens(grid), side, recompute, *figures)


def training_step(width: Width, grid: Grid, dtype: torch.dtype, side: str, way: str) -> tuple[int, int, int]:
    """(bytes of weights and optimiser, peak of live bytes, FLOPs) of one step of a whole model."""
    few, more = (_run_step(width._replace(layers=layers), grid, dtype, side, way) for layers in (FEW, MORE))
    steps = (width.layers - FEW) // (MORE - FEW)
    weights, peak, flops = (a + (b - a) * steps for a, b in zip(few, more, strict=True))
    return weights, peak, flops


def _run_step(width: Width, grid: Grid, dtype: torch.dtype, side: str, way: str) -> tuple[int, int, int]:
    """Twice: PyTorch's counter keeps tensors alive, and our native ops hide their products from it."""
    live, weights = LiveBytes(), 0
    for tensors in _run(width, grid, dtype, side, way, live):
        for tensor in tensors:
            live.track(tensor)
        weights = live.now
    counter = flop_counter()
    with fym_kernels.use_backend("reference"):
        for _ in _run(width, grid, dtype, side, way, counter):
            pass
    return weights, live.peak, counter.get_total_flops()


def _run(
    width: Width, grid: Grid, dtype: torch.dtype, side: str, recompute: str, observer: AbstractContextManager
) -> Iterator[list[Tensor]]:
    """Yields the weights and the optimiser's state, then runs one step under `observer`."""
    with torch.device("meta"):
        model = naive.stock_transformer(width, dtype)
        if side == "naive":
            naive.add_adapters(model, RANK)
    ours_too: list[Tensor] = []  # our adapters are no part of the model
    if side == "ours":
        ours_too = ours.install(model, width, RANK, grid, recompute_ffn=recompute == "ffn")
    if recompute == "block":
        model.enable_gradient_checkpointing()
    with shapes_only(model):
        trained = [p for p in model.parameters() if p.requires_grad] + ours_too
        states = [torch.empty(p.shape, dtype=p.dtype) for p in trained for _ in range(2)]  # of AdamW
        yield [*model.parameters(), *ours_too, *states]
        latents = torch.empty(1, LATENT_CHANNELS, grid[0], 2 * grid[1], 2 * grid[2])
        text, target = torch.empty(1, TEXT_TOKENS, TEXT_WIDTH), torch.empty_like(latents)
        timestep, weight = torch.empty(1), torch.empty(1)
        with observer:
            pred = model(latents.to(dtype), timestep, text.to(dtype), return_dict=False)[0].float()
            loss = (naive.motion_loss if side == "naive" else ours.loss)(pred, target, weight, 1.0)
            del pred
            loss.backward()
