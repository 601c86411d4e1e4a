"""Which background a clip shows, named as a caption names it."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from fym.embedded.checker.palette import nearest_colour
from fym.embedded.checker.segment import Segmentation, border_mask
from fym.embedded.scenes import BACKGROUNDS, PHOTOS, SIZE, Camera, Ground, Scene, render

SPAN = 60.0  # difference of the two ends of a gradient, in some channel; a shaded colour has less
EXAMPLES = 16  # rendered backgrounds of each kind and colour that a structured one is compared with
SMOOTH = "smooth"  # an example of plain, shaded and gradient backgrounds
DOUBT = 1.3  # a background this much further from the smooth examples than from others is still smooth
UNEVEN = 5.0  # of 255: slow unevenness with which a model paints smooth backgrounds
LOOKS = ("striped", "checked", "rough")


def name_ground(video: np.ndarray, parts: Segmentation) -> str:
    """`blue`, `red and blue gradient`, `checked green`, `forest`, ..."""
    if parts.patterned:
        name = _nearest_example(video, parts)
        if name != SMOOTH:
            return name
    border = border_mask(*video.shape[1:3])
    ends = _ends(np.median(parts.ground, axis=0), border)
    if ends is not None:
        first, second = (nearest_colour(end, BACKGROUNDS) for end in ends)
        if first != second:
            return f"{first} and {second} gradient"
    return nearest_colour(np.median(parts.ground[:, border].reshape(-1, 3), axis=0), BACKGROUNDS)


def _ends(surface: np.ndarray, border: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Colours at the two ends of a gradient, in the order of its direction as drawn, or None of a plain one.

    A gradient goes from one colour to another along a direction; which of the two is named first is open, so
    they are sorted by their places: the caller compares both orders.
    """
    pixels = surface[border]
    axis = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)[2][0]
    along = (pixels - pixels.mean(0)) @ axis
    low, high = (pixels[along <= np.percentile(along, 4)], pixels[along >= np.percentile(along, 96)])
    ends = (np.median(low, axis=0), np.median(high, axis=0))
    brightness = np.array(ends).sum(-1)
    same_hue = np.abs(ends[0] / max(brightness[0], 1) - ends[1] / max(brightness[1], 1)).max() < 0.05
    if np.abs(ends[0] - ends[1]).max() < SPAN or (same_hue and brightness.min() > 0.6 * brightness.max()):
        return None
    return ends


def same_ground(read: str, named: str) -> bool:
    """Whether a background that was read is the named one; a gradient may be read from either end."""
    if " and " in read and " and " in named:
        return set(read.split()) == set(named.split())
    return read == named


# --------------------------------------------------------------------------- structured backgrounds
def _nearest_example(video: np.ndarray, parts: Segmentation) -> str:
    """The name whose rendered examples are nearest to the clip, along linear discriminants.

    What departs little from a smooth background may be a pale photo, but no pattern of a colour: those are
    strong, and what a model paints is never quite even.
    """
    picked = np.linspace(0, len(video) - 1, 5).round().astype(int)
    features = np.mean([_features(video[i], parts.mask[i]) for i in picked], axis=0)
    names, examples, whiten = _examples()
    distance = np.square(examples - features @ whiten).sum(-1).min(1)
    smooth = np.array([name.startswith(SMOOTH) for name in names])
    if not parts.structured:
        distance[[name.partition(" ")[0] in LOOKS for name in names]] = np.inf
    if distance[smooth].min() < DOUBT * distance.min():
        return SMOOTH
    return names[int(distance.argmin())]


def _features(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour statistics and orientation statistics of the gradients of one frame, objects left out."""
    size = frame.shape[0]
    if size != SIZE:
        frame = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask.astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    frame = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0)
    free = ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    if free.sum() < 200:
        free[:] = True
    lab = cv2.cvtColor(frame / 255, cv2.COLOR_RGB2LAB)
    colours = lab[free]
    mean, spread = colours.mean(0), colours.std(0)
    deciles = np.percentile(colours, [10, 50, 90], axis=0).ravel()
    light = lab[..., 0]
    dx, dy = cv2.Sobel(light, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(light, cv2.CV_32F, 0, 1) / 8
    size_, angle = np.hypot(dx, dy)[free], np.arctan2(dy, dx)[free]
    weight = size_ / max(float(size_.sum()), 1e-6)
    turns = [abs(np.sum(weight * np.exp(1j * k * angle))) for k in (2, 4)]
    energy = np.sqrt(np.mean(size_**2))
    peaked = np.log((size_.mean() + 0.05) / (energy + 0.05))
    tone = (colours[:, 0] - mean[0]) / (spread[0] + 0.5)
    texture = [*(20 * np.array(turns)), 5 * np.log(energy + 0.3), 20 * peaked]
    tones = [10 * np.mean(np.abs(tone)), 5 * np.mean(tone**3)]
    return np.array([*mean, *np.log(spread + 1), *deciles, *texture, *tones])


@lru_cache(maxsize=1)
def _examples() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, whitened features of their examples (N, EXAMPLES, K), and the whitening (K, K)."""
    rng = np.random.default_rng(12)
    kinds = [(look, colour, 0) for look in (*LOOKS, SMOOTH) for colour in BACKGROUNDS]
    kinds += [("photo", name, patch) for name, count in PHOTOS.items() for patch in range(count)]
    names = [colour if look == "photo" else f"{look} {colour}" for look, colour, _ in kinds]
    rows = [[_example(*kind, rng) for _ in range(EXAMPLES)] for kind in kinds]
    table = np.array(rows)
    within = np.mean([np.cov(group.T) for group in table], axis=0)
    values, vectors = np.linalg.eigh(within + 1e-3 * np.trace(within) / len(within) * np.eye(len(within)))
    whiten = vectors / np.sqrt(values)
    return names, table @ whiten, whiten


def _example(kind: str, colour: str, patch: int, rng: np.random.Generator) -> np.ndarray:
    second, uneven = "", np.zeros((SIZE, SIZE, 1))
    if kind == SMOOTH:
        coarse = rng.normal(0, rng.uniform(0, UNEVEN), (8, 8))
        uneven = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)[..., None]
        kind = str(rng.choice(["plain", "shaded", "gradient"]))
        second = str(rng.choice(list(BACKGROUNDS))) if kind == "gradient" else ""
    seed = 2 * patch + int(rng.integers(2)) if kind == "photo" else int(rng.integers(10_000))
    tint, angle = float(rng.uniform(0.88, 1.08)), float(rng.uniform(0, 2 * np.pi))
    ground = Ground(colour, kind, second, tint, angle, seed)
    camera = Camera(24 + rng.uniform(-14, 14, (1, 2)), rng.uniform(0.7, 1.5, 1), rng.uniform(-0.5, 0.5, 1))
    frame = render(Scene((), ground, camera=camera, frames=1))[0].numpy().astype(np.float32)
    noisy = frame + uneven + rng.normal(0, rng.uniform(0, 8), frame.shape)
    seen = np.clip(cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.3, 1.5)), 0, 255)
    return _features(seen.astype(np.float32), np.zeros(frame.shape[:2], bool))
