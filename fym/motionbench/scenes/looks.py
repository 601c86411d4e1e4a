"""The looks of the synthetic part: of each case one for the reference and three for its prompts.

No target shares a colour or background with its reference, nor a shape, except that persons stay persons.
"""

from __future__ import annotations

import zlib

from fym.embedded.scenes import PHOTOS, Ground
from fym.motionbench.scenes.look import Look


def _ground(name: str) -> Ground:
    """The background that a caption calls so."""
    if name in PHOTOS:
        return Ground(name, "photo")
    kind, _, colour = name.rpartition(" ")
    return Ground(colour, kind or "plain", angle=0.4)


def _look(text: str) -> Look:
    """From "red circle, blue square / grey"; nothing before the slash is a background alone."""
    things, ground = (part.strip() for part in text.split("/"))
    objects = [tuple(reversed(thing.split())) for thing in things.split(",") if thing.strip()]
    return Look(_ground(ground), tuple((shape, colour) for shape, colour in objects))


# Of each kind rows of a reference and its targets; the name of a case says which row it has.
LOOKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "one": (
        ("red circle / grey", "yellow star / blue", "white square / green", "purple triangle / cyan"),
        ("blue square / pink", "white circle / brown", "yellow star / black", "red cross / cyan"),
        ("yellow star / brown", "purple circle / white", "red square / cyan", "blue triangle / pink"),
        ("white triangle / purple", "orange circle / blue", "black square / yellow", "red star / grey"),
    ),
    "turning": (  # a circle would not show it
        ("red square / grey", "yellow star / blue", "white triangle / green", "purple cross / cyan"),
        ("blue triangle / pink", "white square / brown", "purple star / yellow", "red cross / cyan"),
    ),
    "two": (
        (
            "red circle, blue square / grey",
            "yellow star, white triangle / green",
            "purple triangle, black cross / cyan",
            "orange star, green cross / white",
        ),
        (
            "yellow star, white cross / blue",
            "red circle, black square / cyan",
            "purple triangle, green circle / white",
            "orange square, red triangle / grey",
        ),
        (
            "white triangle, purple square / green",
            "yellow circle, red star / blue",
            "black cross, orange circle / pink",
            "blue star, yellow cross / brown",
        ),
    ),
    "three": (
        (
            "red circle, blue circle, white square / grey",
            "yellow star, purple triangle, black cross / green",
            "green triangle, orange star, purple star / white",
            "black star, yellow cross, green triangle / pink",
        ),
        (
            "yellow star, white triangle, red star / blue",
            "purple circle, black square, green circle / cyan",
            "blue square, orange circle, purple cross / white",
            "black circle, blue cross, green square / pink",
        ),
    ),
    # No stripes or checks: a pattern that repeats looks the same after a step of the camera.
    "ground": (
        ("/ meadow", "/ rough pink", "/ forest", "/ street"),
        ("/ forest", "/ street", "/ rough cyan", "/ city"),
        ("/ city", "/ rough red", "/ meadow", "/ forest"),
        ("/ rough blue", "/ city", "/ street", "/ meadow"),
    ),
    "ground and one": (
        (
            "red circle / meadow",
            "yellow star / rough blue",
            "white square / forest",
            "purple triangle / city",
        ),
    ),
    "ground and two": (
        (
            "red circle, blue square / meadow",
            "yellow star, white triangle / rough purple",
            "orange cross, white star / forest",
            "black triangle, purple star / rough cyan",
        ),
        (
            "white square, yellow triangle / city",
            "red star, blue circle / rough pink",
            "purple cross, black circle / rough cyan",
            "orange star, red circle / street",
        ),
    ),
    "person": (
        ("red person / grey", "yellow person / blue", "white person / green", "purple person / cyan"),
        ("blue person / white", "red person / cyan", "yellow person / brown", "black person / pink"),
        ("yellow person / purple", "white person / blue", "green person / white", "red person / grey"),
    ),
}


def looks(kind: str, name: str) -> tuple[Look, ...]:
    """Reference and targets of the case of that name; other cases have no influence."""
    rows = LOOKS[kind]
    return tuple(map(_look, rows[zlib.crc32(name.encode()) % len(rows)]))
