"""Captions: one plain grammar, and varied wordings of the same content."""

from __future__ import annotations

import numpy as np

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "person": ("person", "figure"),
    "moving": ("moving", "going", "sliding", "drifting", "travelling"),
    "circling": ("circling", "going round"),
    "standing still": ("standing still", "resting", "not moving"),
    "wandering": ("wandering", "roaming", "strolling about"),
    "spinning": ("spinning", "turning", "rotating"),
    "growing": ("growing", "getting bigger"),
    "shrinking": ("shrinking", "getting smaller"),
    "walking": ("walking",),
    "running": ("running", "jogging"),
    "jumping": ("jumping", "hopping"),
}
PLACES = {
    "forest": "in a forest",
    "meadow": "in a meadow",
    "cloudy": "in front of a cloudy sky",
    "city": "in a city at night",
    "street": "on a street",
}
GROUND_FORMS = ("on a {} background", "in front of a {} background", "against a {} background")


def caption(shape: str, colour: str, background: str, motion: str = "", size: str = "") -> str:
    """The plain grammar, e.g. `a small red star moving left on a blue background`."""
    return " ".join(w for w in (noun(shape, colour, size), motion, f"on a {background} background") if w)


def noun(shape: str, colour: str, size: str = "", texture: str = "") -> str:
    """`a small striped red star`."""
    return " ".join(w for w in ("a", size, texture, colour, shape) if w)


def reword(phrase: str, rng: np.random.Generator) -> str:
    """Replace the words that have synonyms by one of them each."""
    for word, choices in SYNONYMS.items():
        if word in phrase.split() or (" " in word and word in phrase):
            phrase = phrase.replace(word, str(rng.choice(choices)), 1)
    return phrase


def describe(
    objects: list[tuple[str, str]], background: str, camera: str, rng: np.random.Generator, *, plain: bool
) -> str:
    """A caption of (noun, motion) pairs, a background and a camera move; empty parts are left out.

    `plain` keeps to the plain grammar and its words; otherwise synonyms and the order vary.
    """
    nouns = [(n, m) if plain else (reword(n, rng), reword(m, rng)) for n, m in objects]
    things = [" ".join(w for w in pair if w) for pair in nouns]
    seen = ", ".join(things[:-1]) + " and " + things[-1] if len(things) > 1 else "".join(things)
    form = GROUND_FORMS[0] if plain else str(rng.choice(GROUND_FORMS))
    ground = PLACES[background] if background in PLACES else form.format(background)
    if plain or rng.random() < 0.5:
        text = f"{seen} {ground}" if seen else ground.removeprefix("on ")
    else:
        text = f"{ground}, {seen}" if seen else ground.removeprefix("on ")
    return f"{text}, the camera {camera}" if camera else text
