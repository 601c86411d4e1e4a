"""Random scenes of the training world. Every scene is a function of the generator it is given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fym.embedded.scenes import figure
from fym.embedded.scenes.backgrounds import PHOTOS, Ground, visible_on
from fym.embedded.scenes.camera import CAMERA_MOVES, SIZE
from fym.embedded.scenes.captions import describe, noun
from fym.embedded.scenes.colours import BACKGROUNDS, COLOURS, TEXTURES, distinct
from fym.embedded.scenes.motions import FRAMES, MOTIONS, fit
from fym.embedded.scenes.scene import Scene, Thing
from fym.embedded.scenes.shapes import SHAPES

SIZES = {"small": (5.0, 6.5), "": (6.5, 8.5), "large": (8.5, 11.0)}  # half extent, pixels
CHANGES = {  # what an object does besides moving: size at the end over the start, turns
    "spinning clockwise": (1.0, 1.0),
    "spinning counterclockwise": (1.0, -1.0),
    "growing": (1.9, 0.0),
    "shrinking": (1 / 1.9, 0.0),
}
# Kinds of scene and their shares. `plain`: one object, plain colours, a camera at rest.
KINDS = {
    "plain": 0.25,
    "textured": 0.03,
    "ground": 0.06,
    "several": 0.12,
    "changing": 0.03,
    "person": 0.11,
    "camera": 0.40,
}
_MOTION_WEIGHTS = np.array([0.065] * 8 + [0.07, 0.07, 0.08, 0.26])


def sample_scene(rng: np.random.Generator, *, frames: int = FRAMES, kind: str | None = None) -> Scene:
    """A random scene of the training world, of one of KINDS (drawn by their shares unless given)."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    plain_words = bool(rng.random() < (0.6 if kind == "plain" else 0.3))
    ground = _ground(rng, kind)
    if kind == "person":
        things, objects = _person(rng, ground, frames)
        return Scene(
            things, ground, describe(objects, ground.name, "", rng, plain=plain_words), frames=frames
        )
    if kind == "camera":
        return _camera_scene(rng, ground, frames, plain_words)
    count = int(rng.choice([2, 3], p=[0.7, 0.3])) if kind == "several" else 1
    made = [_thing(rng, ground, frames, kind) for _ in range(count)]
    for _ in range(40):  # several: other colours, apart at the start, at most one on a circle
        if _tell_apart([t for t, _ in made]):
            break
        made = [_thing(rng, ground, frames, kind) for _ in range(count)]
    text = describe([o for _, o in made], ground.name, "", rng, plain=plain_words)
    return Scene(tuple(t for t, _ in made), ground, text, frames=frames)


def _tell_apart(things: list[Thing]) -> bool:
    if len({t.colour for t in things}) < len(things):
        return False
    if sum("clockwise" in t.motion for t in things) > 1:  # two on circles would be an orbiting pair
        return False
    starts = [(t.path[0], float(t.radius[0])) for t in things]
    return all(
        np.linalg.norm(p - q) > r + s + 2 for i, (p, r) in enumerate(starts) for q, s in starts[i + 1 :]
    )


def _ground(rng: np.random.Generator, kind: str) -> Ground:
    """Plain or shaded, but for the kinds whose subject is the background or that need structure in it."""
    seed, tint = int(rng.integers(10_000)), float(rng.uniform(0.88, 1.08))
    structured = kind in ("ground", "camera") or (kind == "person" and rng.random() < 0.4)
    colour = str(rng.choice(list(BACKGROUNDS)))
    if not structured:
        return Ground(colour, "shaded" if rng.random() < 0.3 else "plain", tint=tint)
    if kind == "camera":  # gradients and stripes hardly show that the camera moves, checks only how far
        shares = {"checked": 0.1, "rough": 0.4, "photo": 0.5}
    else:
        shares = {"gradient": 0.2, "striped": 0.1, "checked": 0.15, "rough": 0.2, "photo": 0.35}
    look = str(rng.choice(list(shares), p=list(shares.values())))
    if look == "photo":
        return Ground(str(rng.choice(list(PHOTOS))), look, tint=tint, seed=seed)
    second = ""
    if look == "gradient":
        second = str(rng.choice([n for n in BACKGROUNDS if distinct(BACKGROUNDS[n], BACKGROUNDS[colour])]))
    return Ground(colour, look, second, tint, float(rng.uniform(0, 2 * math.pi)), seed)


def _colour(rng: np.random.Generator, ground: Ground) -> str:
    seen = [name for name, rgb in COLOURS.items() if visible_on(ground, rgb)]
    return str(rng.choice(seen or ["white"]))


def _thing(rng: np.random.Generator, ground: Ground, frames: int, kind: str) -> tuple[Thing, tuple[str, str]]:
    """One object and its (noun, motion) for the caption."""
    change = str(rng.choice(list(CHANGES))) if kind == "changing" else ""
    motion = str(rng.choice(["still", "wander"]) if change else rng.choice(list(MOTIONS), p=_MOTION_WEIGHTS))
    texture = "plain"
    if kind == "textured" or (change and rng.random() < 0.3):
        texture = str(rng.choice(TEXTURES[1:]))
    shapes = [s for s in SHAPES if s != "circle"] if "spinning" in change and texture == "plain" else SHAPES
    size = str(rng.choice(list(SIZES), p=[0.2, 0.45, 0.35]))
    if texture != "plain":
        size = "large"
    radius = np.full(1, rng.uniform(*SIZES[size]) * (0.85 if kind == "several" else 1.0))
    t = np.linspace(0.0, 1.0, frames)
    angle = np.full(1, rng.uniform(-0.25, 0.25))
    if change:
        ratio, turns = CHANGES[change]
        if ratio != 1.0:
            radius = 7.5 * rng.uniform(0.9, 1.1) * ratio ** (t - 0.5)
            size = ""
        if turns:
            angle = angle + 2 * math.pi * turns * rng.uniform(0.6, 1.5) * t
    shape, colour = str(rng.choice(list(shapes))), _colour(rng, ground)
    phrase, path = MOTIONS[motion]
    thing = Thing(
        shape=shape,
        colour=colour,
        path=fit(path(t, rng), float(radius.max()) + 2),
        radius=radius,
        angle=angle,
        texture=texture,
        tint=float(rng.uniform(0.92, 1.06)),
        motion=change or motion,
    )
    named = change or (phrase if rng.random() < 0.75 else "")
    told = size if kind != "several" and rng.random() < 0.7 else ""
    return thing, (noun(shape, colour, told, "" if texture == "plain" else texture), named)


def _person(
    rng: np.random.Generator, ground: Ground, frames: int
) -> tuple[tuple[Thing, ...], list[tuple[str, str]]]:
    """A person doing one of FIGURE_MOTIONS; who walks, runs or crawls also gets on."""
    phrase = str(rng.choice(list(figure.FIGURE_MOTIONS)))
    recording = figure.FIGURE_MOTIONS[phrase]
    mirrored, height = bool(rng.random() < 0.5), float(rng.uniform(13, 18))
    loops = recording in figure.LOOPS
    pose = figure.poses(
        recording,
        frames,
        view=float(rng.uniform(-0.5, 0.5)),
        mirrored=mirrored,
        start=int(rng.integers(0, 30)) if loops else 0,
    )
    centre = figure.centre_of_area(pose)
    path = centre * height + SIZE / 2
    where = ""
    if recording in figure.TRAVELLING:
        length = rng.uniform(0, 22)
        path[:, 0] += (-1 if mirrored else 1) * length * (np.linspace(0, 1, frames) - 0.5)
        where = " to the left" if mirrored else " to the right"
    path[:, 0] += rng.uniform(-8, 8)
    colour = _colour(rng, ground)
    thing = Thing(
        shape="person",
        colour=colour,
        path=fit(path, 0.75 * height),
        radius=np.full(1, height),
        tint=float(rng.uniform(0.92, 1.06)),
        motion=phrase,
        pose=pose - centre[:, None],
    )
    return (thing,), [(noun("person", colour), phrase + where if rng.random() < 0.9 else "")]


def _camera_scene(rng: np.random.Generator, ground: Ground, frames: int, plain_words: bool) -> Scene:
    """A moving camera over a structured background, with no object or one that stays in sight."""
    t = np.linspace(0.0, 1.0, frames)
    move = "wanders" if rng.random() < 0.5 else str(rng.choice(list(CAMERA_MOVES)))
    camera = CAMERA_MOVES[move](t, rng)
    things: tuple[Thing, ...] = ()
    objects: list[tuple[str, str]] = []
    if rng.random() < 0.35:
        thing, (what, _) = _thing(rng, ground, frames, "camera")
        margin = float((thing.radius * camera.zoom).max()) + 2
        for _ in range(30):
            motion = "still" if rng.random() < 0.6 else "wander"
            phrase, path = MOTIONS[motion]
            world = path(t, rng)
            seen = camera.to_frame(world)
            if seen.min() > margin and seen.max() < SIZE - margin:
                things = (replace(thing, path=world, motion=motion),)
                objects = [(what, phrase if rng.random() < 0.5 else "")]
                break
    told = "" if move == "wanders" and rng.random() < 0.5 else move
    text = describe(objects, ground.name, told, rng, plain=plain_words)
    return Scene(things, ground, text, camera, frames)
