"""The looks of the synthetic part: of each case one for the reference and three for its prompts.

No target shares a shape, colour or background with its reference.
"""

from __future__ import annotations

import zlib

from fym.embedded.scenes import Ground
from fym.motionbench.scenes.look import Look

# Rows of a reference and its targets; the name of a case says which row it has.
LOOKS: dict[str, tuple[tuple[Look, ...], ...]] = {
    "object": (
        (
            Look(Ground("grey"), (("circle", "red"),)),
            Look(Ground("blue"), (("star", "yellow"),)),
            Look(Ground("green"), (("square", "white"),)),
            Look(Ground("cyan"), (("triangle", "purple"),)),
        ),
    ),
}


def looks(kind: str, name: str) -> tuple[Look, ...]:
    """Reference and targets of the case of that name; other cases have no influence."""
    rows = LOOKS[kind]
    return rows[zlib.crc32(name.encode()) % len(rows)]
