"""LayerNorm without affine, then * (1 + scale) + shift: the start of each branch of a DiT block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fym_kernels import checks


def check(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> None:
    checks.floating("x", x)
    checks.rank("x", x, "BSd")
    for name, value in (("scale", scale), ("shift", shift)):
        checks.floating(name, value, x)
        checks.shape(name, value, (x.shape[0], x.shape[2]), tuple(x.shape))
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, in the dtype of x; x (B,S,d), scale and shift (B,d) or (B,S,d)."""
    check(x, scale, shift, eps)
    acc = checks.accumulation_dtype(x.dtype)
    scale, shift = (v.to(acc) if v.ndim == 3 else v.to(acc).unsqueeze(1) for v in (scale, shift))
    return (F.layer_norm(x.to(acc), (x.shape[-1],), eps=eps) * (1 + scale) + shift).to(x.dtype)
