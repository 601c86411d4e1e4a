"""One linear layer plus a low-rank update that touches only the active heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fym_kernels import checks


def check_heads(active_heads: Tensor, head_dim: int, width: int) -> None:
    """active_heads: sorted unique int64 < width / head_dim. Values on an accelerator are not read back."""
    if not isinstance(active_heads, Tensor) or active_heads.dtype != torch.int64 or active_heads.ndim != 1:
        raise ValueError("active_heads must be a 1-D int64 tensor of head numbers")
    if head_dim <= 0 or width % head_dim:
        raise ValueError(f"head_dim must divide the layer's width {width}, got {head_dim}")
    if active_heads.device.type != "cpu" or torch.compiler.is_compiling():
        return
    heads = active_heads.tolist()
    if heads != sorted(set(heads)):
        raise ValueError(f"active_heads must be sorted and unique, got {heads}")
    if heads and not 0 <= heads[0] <= heads[-1] < width // head_dim:
        raise ValueError(f"active_heads must lie in 0..{width // head_dim - 1}, got {heads}")


def check_base(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x (B,S,d_in), weight (d_out,d_in), bias (d_out,) or None, all of one dtype and device."""
    checks.floating("x", x)
    checks.rank("x", x, "BSd")
    checks.floating(name, weight, x)
    checks.same_dtype(name, weight, "x", x)
    if weight.ndim != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"{name} must have shape (d_out, {x.shape[2]}), got {tuple(weight.shape)}")
    if bias is not None:
        bias_name = name.replace("weights", "biases").replace("weight", "bias")
        checks.floating(bias_name, bias, x)
        checks.same_dtype(bias_name, bias, "x", x)
        checks.shape(bias_name, bias, (weight.shape[0],))


def check_factors(suffix: str, x: Tensor, lora_a: Tensor, lora_b: Tensor, d_in: int, d_out: int) -> None:
    """lora_a (r,d_in), lora_b (d_out,r), of one dtype: that of x, or a wider one."""
    for name, value in ((f"lora_a{suffix}", lora_a), (f"lora_b{suffix}", lora_b)):
        checks.floating(name, value, x)
        if torch.promote_types(value.dtype, x.dtype) != value.dtype:
            raise ValueError(
                f"{name} must be {checks.show(x.dtype)} or wider, got {checks.show(value.dtype)}"
            )
    checks.same_dtype(f"lora_b{suffix}", lora_b, f"lora_a{suffix}", lora_a)
    if lora_a.ndim != 2 or lora_a.shape[1] != d_in:
        raise ValueError(f"lora_a{suffix} must have shape (r, {d_in}), got {tuple(lora_a.shape)}")
    checks.shape(f"lora_b{suffix}", lora_b, (d_out, lora_a.shape[0]))


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    active_heads: Tensor | None,
    head_dim: int | None,
    side: str,
) -> None:
    check_base("weight", x, weight, bias)
    if side not in ("out", "in"):
        raise ValueError(f"side must be 'out' or 'in', got {side!r}")
    d_out, d_in = weight.shape
    if active_heads is not None:
        if head_dim is None:
            raise ValueError("head_dim is needed with active_heads")
        check_heads(active_heads, head_dim, d_out if side == "out" else d_in)
        active = active_heads.numel() * head_dim
        d_out, d_in = (active, d_in) if side == "out" else (d_out, active)
    check_factors("", x, lora_a, lora_b, d_in, d_out)


def take_heads(x: Tensor, active_heads: Tensor, head_dim: int) -> Tensor:
    """The columns of the active heads: (B,S,d) -> (B,S,len(active_heads)*head_dim)."""
    return x.unflatten(-1, (-1, head_dim)).index_select(2, active_heads.to(x.device)).flatten(2)


def add_heads(y: Tensor, update: Tensor, active_heads: Tensor, head_dim: int) -> Tensor:
    """y (B,S,d) with `update` (B,S,len(active_heads)*head_dim) added, in place, to the active heads' columns.

    In place is right because y is fresh from the base layer, whose gradient does not need it.
    """
    update_BSHD = update.to(y.dtype).unflatten(-1, (-1, head_dim))
    y.unflatten(-1, (-1, head_dim)).index_add_(2, active_heads.to(y.device), update_BSHD)
    return y


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
) -> Tensor:
    """x W^T + bias + scale * (x A^T) B^T, the update restricted to whole heads.

    x: (B,S,d_in); weight: (d_out,d_in); bias: (d_out,) or None; active_heads: sorted unique int64, may be
    empty, None = all. side="out": only the active heads' rows of the output change, lora_a (r,d_in), lora_b
    (len*head_dim,r). side="in": only the active heads' columns of the input are read, lora_a
    (r,len*head_dim), lora_b (d_out,r). The factors may be wider than x (float32 beside bfloat16): the
    update is then computed in their dtype.
    """
    check(x, weight, bias, lora_a, lora_b, active_heads, head_dim, side)
    return add_low_rank(
        F.linear(x, weight, bias),
        x,
        lora_a,
        lora_b,
        scale=scale,
        active_heads=active_heads,
        head_dim=head_dim,
        side=side,
    )


def add_low_rank(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scale: float,
    active_heads: Tensor | None,
    head_dim: int | None,
    side: str = "out",
) -> Tensor:
    """What `lora_linear` adds to y, the base layer's output, which may be changed in place."""
    if lora_a.numel() == 0 or lora_b.numel() == 0:
        return y
    if active_heads is not None and head_dim is not None and side == "in":
        x = take_heads(x, active_heads, head_dim)
    update = scale * F.linear(F.linear(x.to(lora_a.dtype), lora_a), lora_b)
    if active_heads is None or head_dim is None or side == "in":
        return y + update.to(y.dtype)
    return add_heads(y, update, active_heads, head_dim)
