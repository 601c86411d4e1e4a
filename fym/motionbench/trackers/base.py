"""What a tracker is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fym.tracks import Tracks


@dataclass(frozen=True)
class Tracker:
    """A named way to follow points. `track` takes frames (F,H,W,3) uint8; its start points depend on F, H and
    W alone. The name holds the version, because scores of different trackers do not compare.
    """

    name: str
    track: Callable[[Tensor], Tracks]
