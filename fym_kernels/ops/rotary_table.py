"""The cosines and sines qk_norm_rope turns by: one entry per position and pair of each axis, a few KB.

Angles are separable: a pair turns by the angle of its token's frame, row or column. So no table over all
tokens ever exists, and the small one is kept, since every layer of a model asks for the same positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor

KEPT = 16  # tables; more sets of positions than that are not in turn within one step

_tables: OrderedDict[Hashable, Tensor] = OrderedDict()


def rotary_table(
    positions: tuple[Tensor, Tensor, Tensor],
    axes_dim: tuple[int, int, int],
    theta: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(2, entries) on `device`: cosines, then sines, of the float64 angles position * theta^(-2j/n).

    Entries: time (F' or B*F' positions) x axes_dim[0]/2 pairs, then rows x axes_dim[1]/2, then columns x
    axes_dim[2]/2, position-major. Positions on the CPU are recognised by their content, so a change in place
    is always seen; for those on another device, where looking would wait for it, the table is made anew.
    """
    if torch.compiler.is_compiling() or not all(type(p) is Tensor and p.is_cpu for p in positions):
        return _build(positions, axes_dim, theta, device, dtype)
    content = tuple((p.dtype, p.shape, p.detach().numpy().tobytes()) for p in positions)
    key = content, axes_dim, theta, device, dtype
    table = _tables.pop(key, None)
    if table is None:
        with torch.inference_mode(False):  # kept for later calls, which may want to save it
            table = _build(tuple(p.detach().clone() for p in positions), axes_dim, theta, device, dtype)
    _tables[key] = table
    while len(_tables) > KEPT:
        _tables.popitem(last=False)
    return table


def _build(
    positions: tuple[Tensor, ...],
    axes_dim: tuple[int, int, int],
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    angles = []
    for position, channels in zip(positions, axes_dim, strict=True):
        exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=position.device) / channels
        angles.append((position.double().unsqueeze(-1) * (1.0 / theta**exponent)).flatten().to(device))
    angle = torch.cat(angles)
    return torch.stack((angle.cos(), angle.sin())).to(dtype)
