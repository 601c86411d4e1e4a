"""Point trackers behind one interface; every one starts from the same grid, so that clips can be compared."""

from __future__ import annotations

from fym.errors import UserError
from fym.motionbench.trackers import learned
from fym.motionbench.trackers.base import Tracker
from fym.motionbench.trackers.dis import DIS
from fym.motionbench.trackers.lucas_kanade import LUCAS_KANADE

__all__ = ["DIS", "LUCAS_KANADE", "Tracker", "find_tracker"]

BUILT_IN = {"lk": LUCAS_KANADE, "dis": DIS}
PLUG_INS = {"cotracker": learned.cotracker, "tapir": learned.tapir}


def find_tracker(name: str) -> Tracker:
    """The tracker of a name: lk, dis, or NAME:CHECKPOINT for cotracker and tapir. UserError for any other."""
    kind, _, checkpoint = name.partition(":")
    if kind in BUILT_IN and not checkpoint:
        return BUILT_IN[kind]
    if kind in PLUG_INS and checkpoint:
        return PLUG_INS[kind](checkpoint)
    known = ", ".join([*BUILT_IN, *(f"{name}:CHECKPOINT" for name in PLUG_INS)])
    raise UserError(f"there is no tracker {name!r}", f"known are {known}", "Give one of these")
