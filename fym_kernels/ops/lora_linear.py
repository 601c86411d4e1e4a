"""lora_linear: one projection with a low-rank update on the active heads."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference

backends.register("lora_linear", "reference", reference.lora_linear)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scale: float,
    active_heads: Tensor | None = None,
    head_dim: int | None = None,
    side: str = "out",
    backend: str | None = None,
) -> Tensor:
    """x W^T + bias + scale * (x A^T) B^T, the update restricted to the active heads.

    x: (B,S,d_in) -> (B,S,d_out); weight: (d_out,d_in); bias: (d_out,) or None.
    active_heads: sorted unique int64, may be empty (the base alone); None = all, without head_dim.
    side="out": rows of the output; lora_a (r,d_in), lora_b (len*head_dim,r).
    side="in": columns of the input (to_out); lora_a (r,len*head_dim), lora_b (d_out,r).
    The factors have the dtype of x or a wider one. Raises ValueError naming the argument that does not fit.
    """
    run = backends.choose("lora_linear", x, backend)
    return run(
        x, weight, bias, lora_a, lora_b, scale=scale, active_heads=active_heads, head_dim=head_dim, side=side
    )
