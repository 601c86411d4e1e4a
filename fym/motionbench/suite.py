"""The data set `fym-motionbench`: which cases there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fym.embedded.scenes import DEVELOPMENT
from fym.errors import UserError
from fym.motionbench.case import Case, Target
from fym.motionbench.real import packaged, read_folder
from fym.motionbench.scenes import Motion, camera, human, several, single
from fym.motionbench.scenes.looks import looks

DATASET = "fym-motionbench"
VERSION = "2"  # of cases, captions and frames: figures of two versions do not compare

# On which settings may be chosen; every other synthetic case confirms them and is used for nothing else.
DEVELOPMENT_CASES = (
    *(f"object/{name}" for name in DEVELOPMENT if not name.startswith("camera")),
    "objects/eights",
    "objects/swings",
    "objects/scatter",
    "camera/back and forth",
    "camera/figure eight",
    "human/slow dance backwards",
    "human/kick and back",
)


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
    every = {case.name: case for case in (*synthetic(), *packaged(), *more)}
    names = list(names)
    unknown = [name for name in names if name not in every]
    if unknown:
        raise UserError(
            f"there is no case {unknown[0]!r}",
            f"{len(every)} others are known",
            "`fym motionbench list` prints them",
        )
    found = [every[name] for name in names] or list(every.values())
    return [
        case
        for case in found
        if part in (None, case.part) and category in (None, case.category) and split in (None, case.split)
    ]


def select(folders: Iterable[str] = (), **chosen: Any) -> list[Case]:
    """`cases`, with those of folders of real clips, as the command line gives them."""
    return cases(more=[case for folder in folders for case in read_folder(Path(folder))], **chosen)


@lru_cache(maxsize=1)
def synthetic() -> tuple[Case, ...]:
    """The rendered cases; nothing is rendered before it is asked for."""
    return tuple(_synthetic())


def _synthetic() -> Iterator[Case]:
    for name in camera.NAMES:
        kind = ("ground", "ground and one", "ground and two")[camera.OBJECTS[name]]
        yield _case("camera", name, kind, camera.camera_motion)
    for name in single.NAMES:
        yield _case("object", name, "turning" if name in single.TURNING else "one", single.single_motion)
    for name in several.NAMES:
        yield _case("objects", name, {2: "two", 3: "three"}[several.OBJECTS[name]], several.several_motion)
    for name in human.NAMES:
        yield _case("human", name, "person", human.human_motion)


def _case(category: str, motion: str, kind: str, make: Callable[[str, int], Motion]) -> Case:
    name = f"{category}/{motion}"
    reference, *others = looks(kind, name)
    return Case(
        name,
        category,
        part="synthetic",
        split="development" if name in DEVELOPMENT_CASES else "test",
        prompt=reference.prompt,
        targets=tuple(Target(look.prompt, look.attributes, look) for look in others),
        look=reference,
        motion=partial(make, motion),
    )
