"""Pairs of clips whose difference is known: for each defect a reference, a faithful clip and a faulty one.

All are rendered from seeded scenes. The faithful clip has the reference's motion and another look, which is
what a perfect transfer makes; the faulty clip is that one with the defect. Lengths are pixels of a 48 pixel
frame, as in `fym.embedded.scenes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fym.embedded.scenes import SHAPES, SIZE, Camera, Ground, Scene, Thing, caption, render
from fym.motionbench.truth import true_tracks
from fym.tracks import Tracks

FRAMES = 17
PIXELS = 144  # width and height of the rendered clips


@dataclass(frozen=True)
class Look:
    """All that is seen but the motion: background, and shape, colour and texture of each object."""

    ground: Ground
    coats: tuple[tuple[str, str, str], ...]

    @property
    def prompt(self) -> str:
        shape, colour, _ = self.coats[0]
        return caption(shape, colour, self.ground.name)

    @property
    def attributes(self) -> dict[str, str]:
        """What `fym.motionbench.attributes.embedded_world` should read."""
        shape, colour, _ = self.coats[0]
        return {"shape": shape, "colour": colour, "background": self.ground.name}


@dataclass(frozen=True)
class Motion:
    """What moves, without its look: the paths of objects (F, 2) and a camera."""

    paths: tuple[np.ndarray, ...] = ()
    camera: Camera = field(default_factory=Camera)


@dataclass(frozen=True)
class Footage:
    """A rendered clip and the scene whose motion it has."""

    scene: Scene
    frames: Tensor  # (F,H,W,3) uint8

    @property
    def tracks(self) -> Tracks:
        """What a perfect tracker finds."""
        return true_tracks(self.scene, size=self.frames.shape[1])


@dataclass(frozen=True)
class Case:
    """One defect in one choice of motion and looks."""

    defect: str
    reference: Footage
    faithful: Footage
    faulty: Footage
    reference_prompt: str
    prompt: str
    attributes: Mapping[str, str] = field(default_factory=dict)  # asked for; none where they cannot be read


def _film(motion: Motion, look: Look) -> Footage:
    things = tuple(
        Thing(shape, colour, path, np.full(1, 8.0), texture=texture)
        for path, (shape, colour, texture) in zip(motion.paths, look.coats, strict=False)
    )
    scene = Scene(things, look.ground, camera=motion.camera, frames=FRAMES)
    return Footage(scene, render(scene, size=PIXELS))


# Backgrounds with structure everywhere: what a certificate tests is the metric, not the tracker's limits.
LOOKS = tuple(
    Look(Ground(name, "photo", seed=seed), (first, second))
    for name, seed, first, second in (
        ("street", 0, ("square", "red", "checked"), ("circle", "yellow", "dotted")),
        ("meadow", 2, ("circle", "blue", "dotted"), ("square", "white", "checked")),
        ("city", 0, ("circle", "purple", "checked"), ("square", "orange", "dotted")),
        ("forest", 1, ("circle", "white", "checked"), ("square", "blue", "checked")),
        ("meadow", 5, ("square", "yellow", "dotted"), ("circle", "red", "checked")),
        ("city", 3, ("square", "green", "checked"), ("circle", "purple", "dotted")),
    )
)


def _plain_looks(rng: np.random.Generator) -> tuple[Look, Look]:
    """One shape, twice: the colours of the object and of the background differ, and can be read off."""
    shape = str(rng.choice(SHAPES))
    colours = rng.permutation([("red", "grey"), ("yellow", "blue"), ("green", "white"), ("white", "brown")])[
        :2
    ]
    first, second = (Look(Ground(str(g)), ((shape, str(c), "plain"),)) for c, g in colours)
    return first, second


def _time() -> np.ndarray:
    return np.linspace(0.0, 1.0, FRAMES)


def _sign(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _line(start: tuple[float, float], way: tuple[float, float]) -> np.ndarray:
    return np.array(start) + _time()[:, None] * np.array(way)


def _circle(rng: np.random.Generator) -> np.ndarray:
    """Three quarters of a turn about the middle of the frame."""
    a = rng.uniform(0, 2 * np.pi) + _sign(rng) * 1.5 * np.pi * _time()
    return SIZE / 2 + 12 * np.stack([np.cos(a), np.sin(a)], 1)


def _pan(x: float, y: float) -> Camera:
    return Camera(centre=SIZE / 2 + _time()[:, None] * np.array([x, y]))


def _reversed_zoom(rng: np.random.Generator) -> tuple[Motion, Motion]:
    rate = np.log(1.6) * _sign(rng) * _time()
    return Motion(camera=Camera(zoom=np.exp(rate))), Motion(camera=Camera(zoom=np.exp(-rate)))


def _reversed_pan(rng: np.random.Generator) -> tuple[Motion, Motion]:
    x, y = 18 * _sign(rng), rng.uniform(-8, 8)
    return Motion(camera=_pan(x, y)), Motion(camera=_pan(-x, -y))


def _five_times(rng: np.random.Generator) -> tuple[Motion, Motion]:
    x, y = 4.4 * _sign(rng), rng.uniform(-1, 1)
    return Motion(camera=_pan(x, y)), Motion(camera=_pan(5 * x, 5 * y))


def _frozen(rng: np.random.Generator) -> tuple[Motion, Motion]:
    path = _circle(rng)
    return Motion((path,)), Motion((np.repeat(path[:1], FRAMES, axis=0),))


def _one_sided(rng: np.random.Generator) -> tuple[Motion, Motion]:
    """Both objects of the faulty clip move as the first one should: nothing in it is foreign."""
    way = 13 * _sign(rng)
    first, second = (_line((x, SIZE / 2), (0, y)) for x, y in ((14, way), (34, -way)))
    return Motion((first, second)), Motion((first, _line((34, SIZE / 2), (0, way))))


def _missing(rng: np.random.Generator) -> tuple[Motion, Motion]:
    s = _sign(rng)
    first, second = _line((24 - 13 * s, 12), (26 * s, 0)), _line((24 + 13 * s, 36), (-26 * s, 0))
    return Motion((first, second)), Motion((first,))


def _time_reversed(rng: np.random.Generator) -> tuple[Motion, Motion]:
    path = _circle(rng)
    return Motion((path,)), Motion((path[::-1].copy(),))


# Defect -> the motion asked for and the faulty one.
WRONG_MOTIONS: dict[str, Callable[[np.random.Generator], tuple[Motion, Motion]]] = {
    "reversed zoom": _reversed_zoom,
    "reversed pan": _reversed_pan,
    "5x speed": _five_times,
    "frozen clip": _frozen,
    "one-sided match": _one_sided,
    "missing object": _missing,
    "time-reversed clip": _time_reversed,
}


def _two_looks(rng: np.random.Generator) -> tuple[Look, Look]:
    """Two of LOOKS with different backgrounds."""
    first = LOOKS[rng.integers(len(LOOKS))]
    others = [look for look in LOOKS if look.ground.name != first.ground.name]
    return first, others[rng.integers(len(others))]


def _wrong_motion(defect: str, rng: np.random.Generator) -> Case:
    asked, faulty = WRONG_MOTIONS[defect](rng)
    before, after = _two_looks(rng)
    films = _film(asked, before), _film(asked, after), _film(faulty, after)
    return Case(defect, *films, before.prompt, after.prompt)


def _flicker(rng: np.random.Generator) -> Case:
    """Every other frame is half blended with another look."""
    motion = Motion((_circle(rng),))
    before, after = _two_looks(rng)
    faithful, other = _film(motion, after), _film(motion, before)
    frames = faithful.frames.clone()
    frames[1::2] = frames[1::2] // 2 + other.frames[1::2] // 2
    return Case("flicker", other, faithful, Footage(faithful.scene, frames), before.prompt, after.prompt)


def _leak(rng: np.random.Generator) -> Case:
    """The faulty clip looks like the reference, although its prompt asks for another look."""
    motion = Motion((_circle(rng),))
    before, after = _plain_looks(rng)
    films = _film(motion, before), _film(motion, after), _film(motion, before)
    return Case("appearance leak", *films, before.prompt, after.prompt, after.attributes)


def _wrong_attribute(rng: np.random.Generator) -> Case:
    """The faulty clip shows an object of a colour that was not asked for."""
    motion = Motion((_circle(rng),))
    before, after = _plain_looks(rng)
    shape, _, texture = after.coats[0]
    wrong = Look(after.ground, ((shape, "purple", texture),))
    films = _film(motion, before), _film(motion, after), _film(motion, wrong)
    return Case("wrong attribute", *films, before.prompt, after.prompt, after.attributes)


WRONG_LOOKS: dict[str, Callable[[np.random.Generator], Case]] = {
    "flicker": _flicker,
    "appearance leak": _leak,
    "wrong attribute": _wrong_attribute,
}
DEFECTS = (*WRONG_MOTIONS, *WRONG_LOOKS)


def make_case(defect: str, seed: int) -> Case:
    """The case of one of DEFECTS with the motion and the looks of a seed."""
    rng = np.random.default_rng((DEFECTS.index(defect), seed))
    return _wrong_motion(defect, rng) if defect in WRONG_MOTIONS else WRONG_LOOKS[defect](rng)
