"""Ours, naive, compiled and the floor side by side, for every op and for a Wan block.

A case holds the same work once per side, on the same values; `calls` gives what measure.interleave times.
N is the size in bytes of one (B,S,d) tensor (of a batch of latent clips for motion_loss): the fewest bytes
an op must move are its inputs read once and its outputs written once, in each direction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fym_kernels
from fym.bench import floor, naive, ours
from fym.bench.measure import Call, step, without_grad
from fym.bench.shapes import LATENT_CHANNELS, TEXT_TOKENS, Grid, Width, tokens

Forward = Callable[[], Any]
MODES = ("forward", "backward", "step")  # step: forward and backward


@dataclass
class Work:
    """One side: forward() and what the backward is asked for; grads belong to the outputs."""

    forward: Forward
    leaves: Sequence[Tensor] = ()
    grads: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] = ()  # there anyhow: never counted as saved

    def call(self, mode: str) -> Call:
        if mode == "forward":
            return without_grad(self.forward)
        if mode == "step":
            return step(self.forward, self.leaves, self.grads)
        out = self.forward()
        outputs = (out,) if isinstance(out, Tensor) else tuple(out)
        return lambda: torch.autograd.grad(outputs, list(self.leaves), self.grads, retain_graph=True)


@dataclass
class Case:
    """`bound` says what the floor is: "copy", "products" or "attention"; floors: its call for each mode."""

    name: str
    num_tokens: int
    sides: dict[str, Work]
    floors: dict[str, Call] = field(default_factory=dict)
    bound: str = "copy"
    factors: dict[str, float] = field(default_factory=dict)  # the floor in units of its call, 1 if not here

    def calls(self, mode: str) -> dict[str, Call]:
        found = {name: work.call(mode) for name, work in self.sides.items()}
        if mode in self.floors:
            found["floor"] = self.floors[mode]
        return found

    def floor_factor(self, mode: str) -> float:
        return self.factors.get(mode, 1.0)


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any] | None:
    """torch.compile of a naive implementation, tried once; None, with a line that says so, if it fails."""
    torch._dynamo.reset()
    made = torch.compile(function, dynamic=False)
    return made if runs(lambda: made(*arguments)) else None


def runs(call: Call) -> bool:
    """Whether a compiled call works here: without a C++ compiler it cannot."""
    try:
        call()
    except Exception as error:
        print(f"torch.compile failed: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def naive_sides(
    function: Callable[..., Any], arguments: tuple[Any, ...], with_compile: bool, **common: Any
) -> dict[str, Work]:
    """A naive function on its arguments, eager and, where that works, compiled; common: of Work."""
    functions = {"naive": function}
    made = compiled(function, *arguments) if with_compile else None
    if made is not None:
        functions["compile"] = made
    return {name: Work(lambda run=run: run(*arguments), **common) for name, run in functions.items()}  # type: ignore[misc]


def _case(
    name: str,
    num_tokens: int,
    native: Forward,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    with_compile: bool,
    common: dict[str, Any],
    **rest: Any,
) -> Case:
    """The three sides of one op that share their leaves: ours, and a naive function eager and compiled."""
    naive_ones = naive_sides(function, arguments, with_compile, **common)
    return Case(name, num_tokens, {"ours": Work(native, **common), **naive_ones}, **rest)


def _random(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_(grad)


def _copy_floor(
    bytes_forward: int, bytes_backward: int, made_forward: Sequence[Tensor], made_backward: Sequence[Tensor]
) -> dict[str, Any]:
    """Copies of as many tensors as each direction makes, scaled to the fewest bytes, which are in units of N.

    A copy of one tensor moves 2 N.
    """
    made = {
        "forward": (bytes_forward, made_forward),
        "backward": (bytes_backward, made_backward),
        "step": (bytes_forward + bytes_backward, [*made_forward, *made_backward]),
    }
    return {
        "floors": {mode: floor.copies(*tensors) for mode, (_, tensors) in made.items()},
        "factors": {mode: size / (2 * len(tensors)) for mode, (size, tensors) in made.items()},
    }


def qk_norm_rope(width: Width, grid: Grid, dtype: torch.dtype, *, with_compile: bool = True) -> Case:
    """Forward 4 N (q, k in and out), backward 6 N (gradients and inputs in, gradients out)."""
    length = tokens(grid)
    query, key = (_random(1, length, width.d, dtype=dtype, grad=True) for _ in range(2))
    norms = [nn.RMSNorm(width.d, eps=1e-6, dtype=dtype).requires_grad_(False) for _ in range(2)]
    tables = naive.rotary_tables(width, grid)
    time, row, column = (torch.arange(n, dtype=torch.float64) for n in grid)
    of_query, of_key = (norm.weight.detach().float() for norm in norms)

    def native() -> tuple[Tensor, Tensor]:
        heads = (width.heads, width.head_dim)
        return fym_kernels.qk_norm_rope(
            query.unflatten(2, heads),
            key.unflatten(2, heads),
            of_query,
            of_key,
            (time, row, column),
            axes_dim=width.axes_dim,
        )

    shape = (1, length, width.heads, width.head_dim)
    grads = [_random(*shape, dtype=dtype) for _ in range(2)]
    return _case(
        "qk_norm_rope",
        length,
        native,
        naive.qk_norm_rope,
        (query, key, *norms, tables, width.heads),
        with_compile,
        {"leaves": (query, key), "grads": grads},
        **_copy_floor(4, 6, (query, key), grads),
    )


def modulated_norm(width: Width, grid: Grid, dtype: torch.dtype, *, with_compile: bool = True) -> Case:
    """Forward 2 N, backward 3 N (gradient and input in, gradient out); scale and shift are frozen."""
    length = tokens(grid)
    x = _random(1, length, width.d, dtype=dtype, grad=True)
    scale, shift = (_random(1, 1, width.d, dtype=torch.float32) for _ in range(2))
    grad = _random(*x.shape, dtype=dtype)
    return _case(
        "modulated_norm",
        length,
        lambda: fym_kernels.modulated_norm(x, scale[:, 0], shift[:, 0]),
        naive.modulated_norm,
        (x, scale, shift),
        with_compile,
        {"leaves": (x,), "grads": (grad,)},
        **_copy_floor(2, 3, (x,), (grad,)),
    )


def gated_residual(width: Width, grid: Grid, dtype: torch.dtype, *, with_compile: bool = True) -> Case:
    """Forward 3 N, backward 2 N (gradient in, that of y out; that of x is the gradient itself)."""
    length = tokens(grid)
    x, y = (_random(1, length, width.d, dtype=dtype, grad=True) for _ in range(2))
    gate = _random(1, 1, width.d, dtype=torch.float32)
    grad = _random(*x.shape, dtype=dtype)
    return _case(
        "gated_residual",
        length,
        lambda: fym_kernels.gated_residual(x, y, gate[:, 0]),
        naive.gated_residual,
        (x, y, gate),
        with_compile,
        {"leaves": (x, y), "grads": (grad,)},
        **_copy_floor(3, 2, (x,), (grad,)),
    )


def gelu(width: Width, grid: Grid, dtype: torch.dtype, *, with_compile: bool = True) -> Case:
    """Of the feed-forward network's hidden layer. Forward 2 N, backward 3 N (gradient and input in)."""
    length = tokens(grid)
    x = _random(1, length, width.ffn_dim, dtype=dtype, grad=True)
    grad = _random(*x.shape, dtype=dtype)
    return _case(
        "gelu",
        length,
        lambda: fym_kernels.gelu(x),
        naive.gelu,
        (x,),
        with_compile,
        {"leaves": (x,), "grads": (grad,)},
        **_copy_floor(2, 3, (x,), (grad,)),
    )


def motion_loss(grid: Grid, batch: int, *, with_compile: bool = True) -> Case:
    """Of a batch of float32 latent clips. Forward 2 N, backward 3 N (both in, gradient out)."""
    frames, rows, columns = grid
    shape = (batch, LATENT_CHANNELS, frames, 2 * rows, 2 * columns)
    pred, target = (_random(*shape, dtype=torch.float32) for _ in range(2))
    pred.requires_grad_()
    weight = torch.ones(batch)
    return _case(
        "motion_loss",
        batch * tokens(grid),
        lambda: fym_kernels.motion_loss(pred, target, weight, motion_weight=1.0),
        naive.motion_loss,
        (pred, target, weight, 1.0),
        with_compile,
        {"leaves": (pred,)},
        floors=dict.fromkeys(MODES, floor.copies(pred)),  # one tensor is made, in the backward
        factors={"forward": 2 / 2, "backward": 3 / 2, "step": 5 / 2},
    )


def lora_qkv(width: Width, grid: Grid, dtype: torch.dtype, rank: int, *, with_compile: bool = True) -> Case:
    """Half of the heads active against PEFT on all. Floor: the base products, forward and input gradient."""
    length = tokens(grid)
    x = _random(1, length, width.d, dtype=dtype, grad=True)
    stock = naive.LoraProjections(width.d, rank, dtype)
    trained = [p for p in stock.parameters() if p.requires_grad]
    bases = [getattr(stock, name).base_layer for name in ("to_q", "to_k", "to_v")]
    weights, biases = [base.weight for base in bases], [base.bias for base in bases]
    pairs = ours.adapter(1, width.heads, width.head_dim, rank).layer(0)
    lora_a = [pairs[p].lora_A for p in "qkv"]
    lora_b = [pairs[p].lora_B for p in "qkv"]
    active = torch.tensor(ours.half_of_the_heads(width.heads))
    grads = [_random(1, length, width.d, dtype=dtype) for _ in range(3)]

    def native() -> tuple[Tensor, Tensor, Tensor]:
        return fym_kernels.lora_qkv(
            x, weights, biases, lora_a, lora_b, active, head_dim=width.head_dim, scale=1.0
        )

    sides = {"ours": Work(native, (x, *lora_a, *lora_b), grads, weights)}
    sides |= naive_sides(stock, (x,), with_compile, leaves=(x, *trained), grads=grads, weights=weights)
    bare = floor.projections(x.detach()[0], weights, biases, [grad[0] for grad in grads])
    return Case(f"lora_qkv, r {rank}", length, sides, {"step": bare}, "products")


def lora_linear(
    width: Width, grid: Grid, dtype: torch.dtype, rank: int, side: str, *, with_compile: bool = True
) -> Case:
    """One projection, as `lora_qkv`. side: "out" as a query has it, "in" as the output projection."""
    length = tokens(grid)
    x = _random(1, length, width.d, dtype=dtype, grad=True)
    name = "to_q" if side == "out" else "to_out"
    stock = naive.LoraProjections(width.d, rank, dtype, [name])
    trained = [p for p in stock.parameters() if p.requires_grad]
    base = getattr(stock, name).base_layer
    pair = ours.adapter(1, width.heads, width.head_dim, rank).layer(0)["q" if side == "out" else "o"]
    active = torch.tensor(ours.half_of_the_heads(width.heads))
    grads = [_random(1, length, width.d, dtype=dtype)]

    def native() -> Tensor:
        return fym_kernels.lora_linear(
            x,
            base.weight,
            base.bias,
            pair.lora_A,
            pair.lora_B,
            scale=1.0,
            active_heads=active,
            head_dim=width.head_dim,
            side=side,
        )

    weights = [base.weight, base.bias]
    sides = {"ours": Work(native, (x, pair.lora_A, pair.lora_B), grads, weights)}
    sides |= naive_sides(stock, (x,), with_compile, leaves=(x, *trained), grads=grads, weights=weights)
    bare = floor.projections(x.detach()[0], [base.weight], [base.bias], [grads[0][0]])
    return Case(f"lora_linear, {side}, r {rank}", length, sides, {"step": bare}, "products")


def head_scores(width: Width, grid: Grid, dtype: torch.dtype) -> Case:
    """All rows exactly, against one forward of scaled_dot_product_attention on the same q, k, v."""
    query, key, value = (_random(1, tokens(grid), width.heads, width.head_dim, dtype=dtype) for _ in range(3))
    bare = floor.attention(query, key, value)
    work = Work(lambda: fym_kernels.head_scores(query, key, grid))
    return Case("head_scores", tokens(grid), {"ours": work}, {"forward": bare}, "attention")


def head_attention(width: Width, grid: Grid, dtype: torch.dtype) -> Case:
    """Half of the heads spatial, half temporal, against full attention in all."""
    shape = (1, tokens(grid), width.heads, width.head_dim)
    query, key, value = (_random(*shape, dtype=dtype, grad=True) for _ in range(3))
    kind = torch.tensor([1, 2] * (width.heads // 2), dtype=torch.int8)
    grad = _random(*shape, dtype=dtype)
    work = Work(
        lambda: fym_kernels.head_attention(query, key, value, kind, grid), (query, key, value), (grad,)
    )
    bare = floor.attention(query, key, value, grad)
    return Case("head_attention", tokens(grid), {"ours": work}, {"step": bare}, "attention")


def block(
    width: Width,
    grid: Grid,
    dtype: torch.dtype,
    rank: int,
    *,
    with_compile: bool = True,
    with_naive: bool = True,
    with_floor: bool = True,
    **options: Any,
) -> Case:
    """A training step of one Wan block in the middle of a model: gradients of its input and its adapter.

    options: of ours.Block.
    """
    length = tokens(grid)
    hidden = _random(1, length, width.d, dtype=dtype, grad=True)
    text = _random(1, TEXT_TOKENS, width.d, dtype=dtype)
    temb = _random(1, 6, width.d, dtype=torch.float32)
    grads = (_random(1, length, width.d, dtype=dtype),)
    native = ours.Block(width, rank, dtype, grid, **options)

    def common(module: nn.Module) -> dict[str, Any]:
        trained = [p for p in module.parameters() if p.requires_grad]
        weights = [*module.parameters(), *module.buffers()]
        return {"leaves": (hidden, *trained), "grads": grads, "weights": weights}

    sides = {"ours": Work(lambda: native(hidden, text, temb), **common(native))}
    if with_naive:
        stock, tables = naive.Block(width, rank, dtype), naive.rotary_tables(width, grid)
        of_stock = common(stock)
        of_stock["weights"] += tables
        sides |= naive_sides(stock, (hidden, text, temb, tables), with_compile, **of_stock)
    floors = {"step": floor.block(width, length, dtype)} if with_floor else {}
    return Case("Wan block", length, sides, floors, "products")
