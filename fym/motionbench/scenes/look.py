"""What a clip shows, apart from how it moves: the background, and shape and colour of each object."""

from __future__ import annotations

from dataclasses import dataclass

from fym.embedded.scenes import Ground
from fym.embedded.scenes.captions import GROUND_FORMS, PLACES, noun


@dataclass(frozen=True)
class Look:
    """Objects as (shape, colour), foremost last, and the background. No objects: a background alone."""

    ground: Ground
    objects: tuple[tuple[str, str], ...] = ()

    @property
    def prompt(self) -> str:
        """The plain caption of the embedded model's grammar; it names no motion."""
        name = self.ground.name
        place = PLACES.get(name, GROUND_FORMS[0].format(name))
        nouns = [noun(shape, colour) for shape, colour in self.objects]
        if not nouns:
            return place.removeprefix("on ")
        seen = ", ".join(nouns[:-1]) + " and " + nouns[-1] if len(nouns) > 1 else nouns[0]
        return f"{seen} {place}"

    @property
    def attributes(self) -> dict[str, str]:
        """What `fym.motionbench.attributes.embedded_world` reads off a clip that shows all of it.

        One object has a shape and a colour; a person only a colour, for its outline is no fixed shape.
        Several have their colours, and for each colour the shape of that object.
        """
        found: dict[str, str] = {}
        if len(self.objects) == 1:
            [(shape, found["colour"])] = self.objects
            if shape != "person":
                found["shape"] = shape
        elif self.objects:
            shapes = {colour: shape for shape, colour in self.objects}
            found = {"colours": " and ".join(sorted(shapes)), **shapes}
        return {**found, "background": self.ground.name}
