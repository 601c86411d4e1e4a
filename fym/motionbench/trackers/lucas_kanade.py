"""The default tracker: the Lucas-Kanade grid of `fym.tracks`, which needs no weights."""

from __future__ import annotations

from fym.motionbench.trackers.base import Tracker
from fym.tracks import TRACKER, track

LUCAS_KANADE = Tracker(TRACKER, track)
