"""Control rows: what the reference itself scores, its first frame frozen, and its time reversed. No model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fym.motionbench.case import Case
from fym.motionbench.methods.base import Method, Model, Tuned


@dataclass(frozen=True, eq=False)
class Control(Method):
    """`make` takes the reference (F,H,W,3) to the clip that is scored in place of a generated one."""

    name: str
    help: str
    make: Callable[[Tensor], Tensor]
    control: bool = True

    def settings(self, model: Model, case: Case) -> str:
        return f"control {self.name}\n"

    def tune(self, model: Model, case: Case, folder: Path) -> Tuned:
        clip = self.make(model.reference(case)[0])
        return Tuned(lambda prompt, seed: clip)


CONTROLS = (
    Control("reference", "the reference clip itself", lambda clip: clip),
    Control("frozen", "its first frame throughout", lambda clip: clip[:1].expand_as(clip).contiguous()),
    Control("reversed", "its frames from last to first", lambda clip: clip.flip(0)),
)
