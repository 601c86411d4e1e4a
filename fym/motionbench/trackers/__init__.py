"""Point trackers behind one interface; every one starts from the same grid, so that clips can be compared."""

from __future__ import annotations

from fym.motionbench.trackers.base import Tracker
from fym.motionbench.trackers.lucas_kanade import LUCAS_KANADE

__all__ = ["LUCAS_KANADE", "Tracker"]
