"""The synthetic part of the data set: motions apart from looks, and the scenes that join them."""

from __future__ import annotations

from fym.motionbench.scenes.look import Look
from fym.motionbench.scenes.motion import Motion, film

__all__ = ["Look", "Motion", "film"]
