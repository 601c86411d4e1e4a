"""The methods of `fym motionbench run`, by name."""

from __future__ import annotations

from fym.errors import UserError
from fym.motionbench.methods.base import Method, Model, Tuned
from fym.motionbench.methods.controls import CONTROLS, Control
from fym.motionbench.methods.guidance import Guidance
from fym.motionbench.methods.tuned import SETTINGS, Base, TunedMethod
from fym.options import closest

METHODS: dict[str, Method] = {
    method.name: method for method in (Base(), *(TunedMethod(*row) for row in SETTINGS), Guidance())
}

__all__ = ["CONTROLS", "METHODS", "Control", "Method", "Model", "Tuned", "find_method"]


def find_method(text: str) -> Method:
    """One of METHODS, or one with other settings: "fym temporal.rank=16,temporal.steps=500".

    Raises UserError for a method that there is not, and for settings of one that has none; whether settings
    are right shows when they meet a model.
    """
    name, _, settings = text.strip().partition(" ")
    if name not in METHODS:
        near = closest(name, METHODS)
        raise UserError(
            f"there is no method {name!r}",
            f"known are {', '.join(METHODS)}",
            f"Take {near}" if near else 'Take one of them, or one with settings: "fym temporal.rank=16"',
        )
    given = [part.strip() for part in settings.split(",") if part.strip()]
    return METHODS[name].with_settings(given) if given else METHODS[name]
