"""Exact scores of a clip of the embedded world: the reference's motion is known, and what a prompt asks for.

Motion: the cosine of velocities with the reference's true tracks (`fym.embedded.checker.velocity_cosine`),
or, where nothing but the camera moves, of how four places of the picture move (`camera_cosine`). Attributes
are read by segmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fym.embedded.checker import Reading, camera_cosine, same_ground, true_steps, velocity_cosine
from fym.embedded.scenes import SIZE, Scene, Thing

STILL = 0.5  # pixels that the centre of an object at rest stays within
PERSON = "person"


@dataclass(frozen=True)
class Seen:
    """What is read off a clip `width` pixels wide, its objects in the order of a scene's."""

    reading: Reading
    width: int
    scene: Scene  # the reference
    ideal: Scene  # the reference's motion in the look the prompt asks for, its objects in the same order

    @cached_property
    def objects(self) -> list[int | None]:
        """Of each object of the scene its number in the reading, or None if it is not found.

        A single object is the largest that is seen. Of several, each is found by its colour in the prompt, or
        else in the reference.
        """
        count, colours = len(self.scene.things), self.reading.colours
        if count < 2:
            return [0 if colours else None] * count
        found: list[int | None] = [None] * count
        for things in (self.ideal.things, self.scene.things):
            for n, thing in enumerate(things):
                free = [i for i, colour in enumerate(colours) if colour == thing.colour and i not in found]
                if found[n] is None and free:
                    found[n] = free[0]
        return found

    def cosine(self, scene: Scene) -> float:
        """Of the motion with that of a scene, -1 to 1; nan where only sizes and angles change in the scene.

        The mean over the scene's moving objects, of which one that is not found counts 0; that of the camera
        where no object moves.
        """
        moving = [n for n, thing in enumerate(scene.things) if _moves(thing, scene.tracks[n])]
        if not moving:
            return self.camera_cosine(scene) if scene.camera.moves else math.nan
        tracks = scene.tracks[:, : len(self.reading.present)]
        return float(np.mean([velocity_cosine(self._track(n), tracks[n]) for n in moving]))

    def camera_cosine(self, scene: Scene) -> float:
        steps = self.reading.camera
        return camera_cosine(steps, true_steps(scene.camera, scene.frames)[: len(steps)])

    def _track(self, n: int) -> np.ndarray:
        """(F, 2) of the n-th object in the scene's unit, NaN where it is not seen."""
        found = self.objects[n] if n < len(self.objects) else None
        if found is None:
            return np.full((len(self.reading.present), 2), np.nan)
        return self.reading.tracks[found] * (SIZE / self.width)

    def scores(self) -> dict[str, Any]:
        """`cosine`; `camera_cosine` where the camera moves behind objects; `right` and `leaked`, for each of
        background, shape and colour the share of objects that have what the prompt asks for, and what the
        reference has instead; with objects `one_piece`, share of frames; `flicker`, of 255. A person's shape
        is not read.
        """
        found: dict[str, Any] = {"cosine": self.cosine(self.scene)}
        if self.scene.things and self.scene.camera.moves:
            found["camera_cosine"] = self.camera_cosine(self.scene)
        ground, wanted, own = self.reading.background, self.ideal.background, self.scene.background
        right, leaked = {"background": float(same_ground(ground, wanted))}, {}
        if wanted != own:
            leaked["background"] = float(same_ground(ground, own))
        if self.scene.things:
            self._of_objects(right, leaked)
        found |= {"right": right, "leaked": leaked}
        if self.scene.things:
            found["one_piece"] = float(self.reading.one_piece.mean())
        return {**found, "flicker": self.reading.flicker}

    def _of_objects(self, right: dict[str, float], leaked: dict[str, float]) -> None:
        pairs = list(zip(self.scene.things, self.ideal.things, strict=True))
        for name, read in (("shape", self.reading.shapes), ("colour", self.reading.colours)):
            named = [(getattr(own, name), getattr(wanted, name)) for own, wanted in pairs]
            seen = ["none" if i is None else read[i] for i in self.objects]
            if any(PERSON in pair for pair in named):
                continue
            right[name] = float(np.mean([s == wanted for s, (_, wanted) in zip(seen, named, strict=True)]))
            if all(own != wanted for own, wanted in named):
                leaked[name] = float(np.mean([s == own for s, (own, _) in zip(seen, named, strict=True)]))


def _moves(thing: Thing, track: np.ndarray) -> bool:
    """In the world and in the frame: what the camera passes or goes with has no motion of its own."""
    return thing.pose is not None or all(np.ptp(path, axis=0).max() > STILL for path in (thing.path, track))
