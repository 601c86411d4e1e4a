"""The three projections of an attention layer, with a low-rank update on the rows of the active heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fym_kernels.reference.lora_linear import add_low_rank, check_base, check_factors, check_heads


def check(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    active_heads: Tensor,
    head_dim: int,
) -> None:
    for name, values in (("weights", weights), ("biases", biases), ("lora_a", lora_a), ("lora_b", lora_b)):
        if not (name == "biases" and values is None) and (
            not isinstance(values, tuple | list) or len(values) != 3
        ):
            raise ValueError(f"{name} must be three tensors (query, key, value)")
    for i in range(3):
        check_base(f"weights[{i}]", x, weights[i], None if biases is None else biases[i])
        check_heads(active_heads, head_dim, weights[i].shape[0])
        active = active_heads.numel() * head_dim
        check_factors(f"[{i}]", x, lora_a[i], lora_b[i], x.shape[2], active)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value: x W_i^T + b_i, plus scale * (x A_i^T) B_i^T in the active heads' columns only.

    x: (B,S,d_in); weights: three (d_out,d_in); biases: three (d_out,) or None; lora_a: three (r,d_in);
    lora_b: three (len(active_heads)*head_dim, r); active_heads: sorted unique int64, may be empty: then the
    base alone. The columns of the other heads equal the base projection bit for bit.
    """
    check(x, weights, biases, lora_a, lora_b, active_heads, head_dim)
    outputs = []
    for i in range(3):
        y = F.linear(x, weights[i], None if biases is None else biases[i])
        y = add_low_rank(
            y, x, lora_a[i], lora_b[i], scale=scale, active_heads=active_heads, head_dim=head_dim
        )
        outputs.append(y)
    return outputs[0], outputs[1], outputs[2]
