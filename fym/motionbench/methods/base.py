"""What a method is: something that is given one clip and a budget, and then makes clips of prompts.

The budget is the same for all: the reference clip as `fym train` reads it, its caption, the number of
optimiser steps of the preset (both stages together, for a method that has one), its batch, learning rates
and rank, the model's own sampler with its own number of steps, and the seeds. What a method makes of it in
seconds and memory is measured, not given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from fym.errors import UserError
from fym.families import Family
from fym.motionbench.case import Case
from fym.positions import COMPRESSION

Generate = Callable[[str, int], Tensor]  # prompt and seed to (F,H,W,3) uint8
Cost = Mapping[str, float]  # "seconds", "cpu_seconds", "peak_rss_mib", see `fym.runlog.spent`


@dataclass(frozen=True)
class Model:
    """A loaded model and the name it was loaded by."""

    path: str
    family: Family

    def reference(self, case: Case) -> tuple[Tensor, float]:
        """Frames (F,H,W,3) uint8 of the case, as the model and the scores see them, and frames a second.

        A filmed clip is cropped, scaled and cut to what the model makes; a rendered one has its own size.
        """
        return _reference(self, case)


@dataclass(frozen=True)
class Tuned:
    """What is left of tuning: a way to make clips, and what each stage took."""

    generate: Generate
    costs: Mapping[str, Cost] = field(default_factory=dict)


class Method(ABC):
    """`name` as given on the command line and in the results."""

    name: str
    help: str  # one line
    control: bool = False  # without a model: one clip for each target, whatever the seed

    def with_settings(self, given: Sequence[str]) -> Method:
        """The method with other settings, "name=value" texts, and their name. UserError if it has none."""
        raise UserError(f"{self.name} has no settings", f"{', '.join(given)} was given", "Leave it out")

    @abstractmethod
    def settings(self, model: Model, case: Case) -> str:
        """All that its clips depend on besides model, case and seed, as text; equal texts, equal clips."""

    @abstractmethod
    def tune(self, model: Model, case: Case, folder: Path) -> Tuned:
        """Learn the motion of the case's reference; keeps what it needs to go on after a kill in `folder`."""


@lru_cache(maxsize=4)
def _reference(model: Model, case: Case) -> tuple[Tensor, float]:
    if case.source is None:
        return case.clip()
    made = model.family.defaults
    frames, fps = case.clip(height=made.height, width=made.width, at_most=made.num_frames)
    return frames[: (len(frames) - 1) // COMPRESSION * COMPRESSION + 1], fps
