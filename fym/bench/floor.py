"""The machine's limits: a large copy, the bare matrix products, and attention as PyTorch has it.

Every call allocates its results, as the ops it is a limit for do. d width, S tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fym.bench.measure import Call, interleave, step
from fym.bench.shapes import TEXT_TOKENS, Width


def copies(*sources: Tensor) -> Call:
    """One read and one write of each tensor, all results alive at the end: so much fresh memory is touched.

    For an op that is given these and makes as many, it is a copy under the op's own conditions; a copy whose
    result is freed at once gets warm memory back and can look twice as fast.
    """
    detached = [source.detach() for source in sources]
    return lambda: [source.clone() for source in detached]


def copy_bandwidth(size: int = 1 << 28) -> float:
    """Bytes/s read and written by a copy of `size` bytes, beyond any cache, into memory already there.

    For comparison with other machines; the rows have copies of their own.
    """
    source = torch.ones(size, dtype=torch.uint8)
    target = source.clone()
    timing = interleave({"copy": lambda: target.copy_(source)}, 10)["copy"]
    return 2 * size / timing.median


def projections(x: Tensor, weights: list[Tensor], biases: list[Tensor], grads: list[Tensor]) -> Call:
    """Forward and input gradient of linear layers that share x (S,d); grads (S,d_out) of the outputs."""

    def run() -> Tensor:
        for weight, bias in zip(weights, biases, strict=True):
            F.linear(x, weight, bias)
        grad = grads[0] @ weights[0]
        for weight, given in zip(weights[1:], grads[1:], strict=True):
            grad.addmm_(given, weight)
        return grad

    return run


def attention(query: Tensor, key: Tensor, value: Tensor, grad: Tensor | None = None) -> Call:
    """scaled_dot_product_attention of (B,S,H,D); with `grad` forward and backward."""
    query, key, value = (x.detach().transpose(1, 2) for x in (query, key, value))
    if grad is None:
        return lambda: F.scaled_dot_product_attention(query, key, value)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    return step(lambda: F.scaled_dot_product_attention(query, key, value), leaves, [grad.transpose(1, 2)])


def block(width: Width, num_tokens: int, dtype: torch.dtype) -> Call:
    """What a training step of a Wan block cannot do without: matrix products and attention, both ways.

    Products: forward and input gradient of four projections of the self-attention, two of the
    cross-attention and the two of the feed-forward, and the text's key and value forward.
    """
    d = width.d

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    def linear(d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
        return random(d_out, d_in) / d_in**0.5, random(d_out)

    square = [linear(d, d) for _ in range(6)]
    up, down = linear(d, width.ffn_dim), linear(width.ffn_dim, d)
    of_text = [linear(d, d) for _ in range(2)]
    x, wide, text = random(num_tokens, d), random(num_tokens, width.ffn_dim), random(TEXT_TOKENS, d)

    def heads(length: int) -> Tensor:
        return random(1, length, width.heads, width.head_dim)

    grad = heads(num_tokens)
    to_self = attention(heads(num_tokens), heads(num_tokens), heads(num_tokens), grad)
    to_text = attention(heads(num_tokens), heads(TEXT_TOKENS), heads(TEXT_TOKENS), grad)

    def run() -> None:
        for weight, bias in [*square, up]:
            F.linear(x, weight, bias)
        F.linear(wide, *down)
        for weight, bias in of_text:
            F.linear(text, weight, bias)
        to_self()
        to_text()
        for weight, _ in [*square, down]:
            x @ weight
        wide @ up[0]

    return run
