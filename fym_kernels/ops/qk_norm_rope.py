"""qk_norm_rope: RMSNorm of query and key, then 3D rotary embedding at real-valued positions."""

from __future__ import annotations

from torch import Tensor

from fym_kernels import backend as backends
from fym_kernels import reference
from fym_kernels.reference.qk_norm_rope import Positions

backends.register("qk_norm_rope", "reference", reference.qk_norm_rope)


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    positions: Positions,
    *,
    axes_dim: tuple[int, int, int],
    theta: float = 10000.0,
    eps: float = 1e-6,
    norm: str | None = "across_heads",
    rotate_from: int = 0,
    interleaved: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Query and key (B,S,H,D), normalised and rotated, in their own dtype. Strided views are welcome.

    Weights: (H*D,) for norm="across_heads", (D,) for "per_head", or None; norm=None only rotates.
    positions: (time, row, column), time (F',) or (B,F'), row (H',), column (W',): real numbers, float64,
    float32 or int. axes_dim: head channels per axis, even, with sum D. Angles are position * theta^(-2j/n)
    in float64. Tokens rotate_from .. rotate_from + F'H'W' rotate; the others (text) are only normalised.
    interleaved: pairs are (2j, 2j+1), otherwise (j, j + D/2). Raises ValueError naming the argument that
    does not fit.
    """
    run = backends.choose("qk_norm_rope", query, backend)
    new_query, new_key = run(
        query,
        key,
        query_weight,
        key_weight,
        positions,
        axes_dim=axes_dim,
        theta=theta,
        eps=eps,
        norm=norm,
        rotate_from=rotate_from,
        interleaved=interleaved,
    )
    return new_query, new_key
