"""A clip in other looks: the colours that its caption names become others, there and in the picture."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fym.video import Clip

# sRGB; the first eight are those of the embedded model's objects, all of them those of its backgrounds.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (36, 176, 60),
    "blue": (40, 80, 228),
    "yellow": (244, 220, 40),
    "purple": (150, 50, 200),
    "orange": (248, 140, 28),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
    "pink": (250, 164, 196),
    "brown": (122, 78, 44),
    "cyan": (64, 208, 220),
}
APART = 90  # of 255, in some channel: two colours of one look
REACH = 0.4  # of a channel's range: how far around a colour that changes others change with it
_WORD = re.compile(rf"\b({'|'.join(COLOURS)}|gray)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Look:
    """A clip's caption with other colours in it. renamed: by the caption's colours, those in their place."""

    caption: str
    renamed: dict[str, str]


def looks(caption: str, count: int) -> list[Look]:
    """The look that the caption tells of, and others up to `count`; alone where it names no colour.

    In each other look every colour is another than it was, and any two are as easily told apart as is seen.
    """
    own = Look(caption, {})
    named = list(dict.fromkeys(map(_name, _WORD.findall(caption))))
    if not named:
        return [own]
    return [own, *(_other(caption, named, number) for number in range(1, count))]


def in_looks(clips: Sequence[Clip], captions: Sequence[str], count: int) -> list[tuple[Clip, str]]:
    """The clips with their captions, and after them each in its other looks."""
    described = list(zip(clips, captions, strict=True))
    others = [(look, clip) for clip, caption in described for look in looks(caption, count)[1:]]
    return described + [
        (replace(clip, frames=recolour(clip.frames, look.renamed)), look.caption) for look, clip in others
    ]


def recolour(frames: Tensor, renamed: dict[str, str]) -> Tensor:
    """The frames (F,H,W,3) uint8 with some of COLOURS become others; colours far from those stay as they are.

    Each colour of the cube moves by the radial-basis interpolation (Gaussian, of width REACH) of the moves of
    the named ones.
    """
    old, new = (
        torch.tensor([COLOURS[name] for name in names]) / 255 for names in (renamed, renamed.values())
    )

    def near(colours: Tensor) -> Tensor:
        return torch.exp(-0.5 * (torch.cdist(colours, old) / REACH).square())

    moves = torch.linalg.solve(near(old), new - old)
    moved = torch.empty_like(frames)
    for frame, out in zip(frames, moved, strict=True):
        pixels = frame.flatten(0, 1) / 255
        out.copy_(((pixels + near(pixels) @ moves).clamp(0, 1) * 255).round().unflatten(0, frame.shape[:2]))
    return moved


def _other(caption: str, named: list[str], number: int) -> Look:
    rng = random.Random(number)
    for apart in itertools.count(APART, -1):  # less where so many colours cannot be that far apart
        drawn = rng.sample(list(COLOURS), len(named))
        renamed = dict(zip(named, drawn, strict=True))
        pairs = itertools.combinations((COLOURS[name] for name in drawn), 2)
        if all(a != b for a, b in renamed.items()) and all(gap(*pair) > apart for pair in pairs):
            break
    return Look(_WORD.sub(lambda word: renamed[_name(word[0])], caption), renamed)


def gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Between two colours, of 255, in the channel where they differ most."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _name(word: str) -> str:
    return word.lower().replace("gray", "grey")
