"""The scores of a report: how each is read from a line of the results, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fym.motionbench.metrics import METRICS
from fym.motionbench.results import Row

SLOWEST = 4.0  # doublings: a frozen clip, whose ratio is 0, counts as sixteen times too slow


@dataclass(frozen=True)
class Score:
    """`read` gives a clip's value, nan where it has none."""

    name: str
    label: str
    definition: str
    read: Callable[[Row], float]
    higher: bool = True  # is better
    headline: bool = False

    @property
    def arrow(self) -> str:
        return "↑" if self.higher else "↓"


def _exact(name: str) -> Callable[[Row], float]:
    return lambda row: _number(row.get("exact", {}).get(name))


def _share(name: str, attribute: str = "") -> Callable[[Row], float]:
    """The mean of the shares of all attributes, or that of one."""

    def read(row: Row) -> float:
        shares: Mapping[str, float] = row.get("exact", {}).get(name, {})
        if attribute:
            return _number(shares.get(attribute))
        return float(np.mean(list(shares.values()))) if shares else math.nan

    return read


def _metric(name: str) -> Callable[[Row], float]:
    return lambda row: _number(row["metrics"].get(name))


def _text_alignment(row: Row) -> float:
    """Only where it is not the mean of the attributes, which has a column of its own."""
    return math.nan if "exact" in row else _metric("text_alignment")(row)


def _speed_error(row: Row) -> float:
    ratio = _metric("speed_ratio")(row)
    return min(SLOWEST, abs(math.log2(ratio))) if ratio > 0 else SLOWEST if ratio == 0 else math.nan


def _camera_error(row: Row) -> float:
    """Where the camera hardly moves the error, in units of its motion, tells nothing."""
    return _metric("camera_error")(row) if row["category"] == "camera" else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _defined(name: str, label: str, more: str = "", *, higher: bool, headline: bool = False) -> Score:
    return Score(name, label, METRICS[name].definition + more, _metric(name), higher, headline)


SCORES: Sequence[Score] = (
    Score(
        "cosine",
        "velocity cosine",
        "cosine of the velocities of what moves with those of the reference's true motion, of objects or, "
        "where none moves, of the camera; rendered cases whose motion is more than a change of size or angle",
        _exact("cosine"),
        headline=True,
    ),
    _defined("motion_fidelity/local", "motion fidelity, local", higher=True, headline=True),
    _defined("motion_fidelity/two_way", "motion fidelity, two-way", higher=True, headline=True),
    _defined("direction", "direction", higher=True, headline=True),
    Score(
        "right",
        "attributes right",
        "share of shape, colour and background that are those of the prompt, read by segmentation",
        _share("right"),
        headline=True,
    ),
    Score(
        "text_alignment",
        "text alignment",
        "cosine of CLIP's embeddings of frames and prompt, where CLIP is there",
        _text_alignment,
        headline=True,
    ),
    Score(
        "leaked",
        "attributes leaked",
        "share of shape, colour and background that are the reference's in place of the prompt's",
        _share("leaked"),
        higher=False,
        headline=True,
    ),
    Score(
        "speed_error",
        "speed error",
        "doublings or halvings of the reference's speed, |log2| of the speed ratio: 0 is its speed, 1 is "
        f"twice or half; at most {SLOWEST:g}, which is what a frozen clip counts",
        _speed_error,
        higher=False,
    ),
    _defined("trajectory_error/frechet", "trajectory error, Fréchet", higher=False),
    _defined("trajectory_error/dtw", "trajectory error, DTW", higher=False),
    Score(
        "camera_error",
        "camera error",
        METRICS["camera_error"].definition + "; cases of the category camera",
        _camera_error,
        higher=False,
    ),
    _defined("object_residual", "object residual", higher=False),
    _defined("temporal_consistency/embedding", "consistency, embedding", higher=True),
    _defined("temporal_consistency/warping", "consistency, warping", higher=False),
    _defined("appearance_leak", "appearance leak", higher=False),
    Score("shape", "shape right", "share of objects of the prompt's shape", _share("right", "shape")),
    Score("colour", "colour right", "share of objects of the prompt's colour", _share("right", "colour")),
    Score(
        "background",
        "background right",
        "share of clips with the prompt's background",
        _share("right", "background"),
    ),
    Score(
        "one_piece", "in one piece", "share of frames in which every object is one piece", _exact("one_piece")
    ),
    _defined("motion_fidelity/legacy", "motion fidelity, legacy", higher=True),
)
