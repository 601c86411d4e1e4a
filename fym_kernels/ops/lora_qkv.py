"""lora_qkv: query, key and value projections with a low-rank update on the active heads' rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("lora_qkv", "reference", reference.lora_qkv)


def lora_qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    *,
    head_dim: int,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (B,S,d_out): x W_i^T + b_i, plus scale * (x A_i^T) B_i^T for the active heads.

    x: (B,S,d_in); weights: three (d_out,d_in); biases: three (d_out,) or None; lora_a: three (r,d_in);
    lora_b: three (len(active_heads)*head_dim, r), the active rows only; active_heads: sorted unique int64,
    may be empty. Factors: the dtype of x or wider. The other heads' columns equal the base projection bit
    for bit. Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("lora_qkv", x, backend)
    query, key, value = run(x, weights, biases, lora_a, lora_b, active_heads, head_dim=head_dim, scale=scale)
    return query, key, value
