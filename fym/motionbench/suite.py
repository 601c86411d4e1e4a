"""The data set `fym-motionbench`: which cases there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import numpy as np

from fym.embedded.scenes import DEVELOPMENT, UNSEEN_MOTIONS, Camera
from fym.embedded.scenes.motions import FRAMES, fit
from fym.errors import UserError
from fym.motionbench.case import Case, Target
from fym.motionbench.scenes.look import Look
from fym.motionbench.scenes.looks import looks
from fym.motionbench.scenes.motion import Body, Motion

DATASET = "fym-motionbench"
VERSION = "1"


def cases(
    *,
    part: str | None = None,
    category: str | None = None,
    split: str | None = None,
    names: Iterable[str] = (),
    more: Iterable[Case] = (),
) -> list[Case]:
    """The cases of the data set, and `more`, that are of a part, category, split and of the given names.

    Raises UserError for a name that there is not.
    """
    every = {case.name: case for case in (*_synthetic(), *more)}
    unknown = [name for name in names if name not in every]
    if unknown:
        raise UserError(
            f"there is no case {unknown[0]!r}",
            f"{DATASET} {VERSION} has {len(every)} others",
            "`fym motionbench list` prints them",
        )
    found = [every[name] for name in names] or list(every.values())
    return [
        case
        for case in found
        if part in (None, case.part) and category in (None, case.category) and split in (None, case.split)
    ]


@lru_cache(maxsize=1)
def _synthetic() -> tuple[Case, ...]:
    return tuple(_objects())


def _single(name: str, seed: int) -> Motion:
    rng = np.random.default_rng(seed)
    path = fit(UNSEEN_MOTIONS[name](np.linspace(0, 1, FRAMES), rng), 9.0)
    return Motion((Body(path, np.full(1, 7.0)),), Camera(), FRAMES)


def _objects() -> Iterable[Case]:
    for name in UNSEEN_MOTIONS:
        yield _case("object", name, partial(_single, name), looks("object", name))


def _case(category: str, name: str, motion: Callable[[int], Motion], seen: tuple[Look, ...]) -> Case:
    reference, *others = seen
    targets = tuple(Target(look.prompt, look.attributes, look) for look in others)
    split = "development" if name in DEVELOPMENT else "test"
    return Case(
        f"{category}/{name}", category, "synthetic", split, reference.prompt, targets, 0, reference, motion
    )
