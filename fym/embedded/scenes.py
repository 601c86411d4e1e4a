"""Rendered scenes with known motion: the world of the embedded model, and ground truth for its checks.

A scene is one flat-coloured shape on a plain or shaded background, moving along a path in a square
frame. Shapes are drawn from signed distance functions with one pixel of anti-aliasing, so a track is
exact to a fraction of a pixel. Lengths are pixels of a 48 pixel frame; positions are (x, y), y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

SIZE = 48
FRAMES = 49
FPS = 16

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (36, 176, 60),
    "blue": (40, 80, 228),
    "yellow": (244, 220, 40),
    "purple": (150, 50, 200),
    "orange": (248, 140, 28),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    **COLOURS,
    "grey": (128, 128, 128),
    "pink": (250, 164, 196),
    "brown": (122, 78, 44),
    "cyan": (64, 208, 220),
}
SIZES = {"small": (4.5, 6.0), "": (6.0, 8.0), "large": (8.0, 10.0)}  # half extent, pixels

Path = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Scene:
    """One clip: what is drawn (shape, colour, background) and where (`path`, (F, 2) centre in pixels)."""

    shape: str
    colour: str
    background: str
    path: np.ndarray
    motion: str
    radius: np.ndarray  # (F,) half extent in pixels
    angle: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (F,) or (1,), radians
    shaded: bool = False
    tint: tuple[float, float] = (1.0, 1.0)  # brightness of shape and background
    prompt: str = ""

    @property
    def track(self) -> np.ndarray:
        """(F, 2) centre of the shape in pixels, (x, y)."""
        return self.path


# --------------------------------------------------------------------------- motions
def _fit(path: np.ndarray, margin: float, size: int = SIZE) -> np.ndarray:
    """Shift (then shrink, when it must) a path so that it stays `margin` pixels inside the frame."""
    low, high = margin, size - margin
    span = path.max(0) - path.min(0)
    scale = min(1.0, float(((high - low) / np.maximum(span, 1e-6)).min()))
    path = (path - path.mean(0)) * scale + path.mean(0)
    path = path + np.maximum(low - path.min(0), 0.0)
    return path - np.maximum(path.max(0) - high, 0.0)


def _start(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(10, SIZE - 10, 2)


def _line(direction: tuple[int, int]) -> Path:
    def path(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        length = rng.uniform(14, 30)
        unit = np.array(direction) / math.hypot(*direction)
        return _start(rng) + (t[:, None] - 0.5) * length * unit

    return path


def _circle(sign: int) -> Path:
    def path(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        radius, turns, phase = rng.uniform(7, 13), rng.uniform(0.9, 1.6), rng.uniform(0, 2 * math.pi)
        a = phase + sign * 2 * math.pi * turns * t
        return _start(rng) + radius * np.stack([np.cos(a), np.sin(a)], 1)

    return path


def _still(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(_start(rng)[None], len(t), 0)


def _wander(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random path: three random low-frequency sinusoids on each axis."""
    out = np.zeros((len(t), 2))
    for axis in range(2):
        for frequency in rng.uniform(0.2, 1.7, 3):
            out[:, axis] += (
                rng.normal() * np.sin(2 * math.pi * (frequency * t + rng.uniform())) / (0.5 + frequency)
            )
    out = (out - out.mean(0)) / max(float(np.ptp(out, axis=0).max()), 1e-6) * rng.uniform(16, 30)
    return out + _start(rng)


MOTIONS: dict[str, tuple[str, Path]] = {
    "left": ("moving left", _line((-1, 0))),
    "right": ("moving right", _line((1, 0))),
    "up": ("moving up", _line((0, -1))),
    "down": ("moving down", _line((0, 1))),
    "up-left": ("moving up and left", _line((-1, -1))),
    "up-right": ("moving up and right", _line((1, -1))),
    "down-left": ("moving down and left", _line((-1, 1))),
    "down-right": ("moving down and right", _line((1, 1))),
    "clockwise": ("circling clockwise", _circle(1)),
    "counterclockwise": ("circling counterclockwise", _circle(-1)),
    "still": ("standing still", _still),
    "wander": ("wandering", _wander),
}


def _figure_eight(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (t + rng.uniform())
    return 24 + np.stack([14 * np.sin(a), 10 * np.sin(2 * a)], 1)


def _spiral(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (1.75 * t + rng.uniform())
    radius = 3 + 11 * t
    return 24 + radius[:, None] * np.stack([np.cos(a), np.sin(a)], 1)


def _bounce(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = (t * 3) % 1.0
    height = 22 * (1 - 0.25 * np.floor(np.minimum(t * 3, 2.999))) * 4 * u * (1 - u)
    return np.stack([10 + 28 * t, 38 - height], 1)


def _pendulum(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = math.radians(50) * np.cos(2 * math.pi * 1.5 * t)
    return np.stack([24 + 26 * np.sin(a), 10 + 26 * np.cos(a)], 1)


def _zig_zag(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([9 + 30 * t, 24 + 20 * (np.abs((t * 2.5) % 1.0 * 2 - 1) - 0.5)], 1)


def _orbit(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a = 2 * math.pi * (1.25 * t + rng.uniform())
    return 24 + np.stack([14 * np.cos(a), 5 * np.sin(a)], 1)


def _roll(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([10 + 28 * t**2, 16 + 20 * t**2], 1)


# Never in the training data: these are what tuning must teach.
UNSEEN_MOTIONS: dict[str, Path] = {
    "figure eight": _figure_eight,
    "spiral": _spiral,
    "bounce": _bounce,
    "pendulum": _pendulum,
    "zig-zag": _zig_zag,
    "orbit": _orbit,
    "roll": _roll,
}


# --------------------------------------------------------------------------- sampling and captions
def caption(shape: str, colour: str, background: str, motion: str = "", size: str = "") -> str:
    """The caption grammar, e.g. `a small red star moving left on a blue background`."""
    words = ["a", size, colour, shape, motion, "on a", background, "background"]
    return " ".join(word for word in words if word)


def sample_scene(rng: np.random.Generator, *, frames: int = FRAMES) -> Scene:
    """A random scene of the training world; the motion is one of MOTIONS."""
    motion = str(rng.choice(list(MOTIONS), p=_MOTION_WEIGHTS))
    shape = str(rng.choice(SHAPES))
    colour = str(rng.choice(list(COLOURS)))
    background = str(rng.choice([name for name in BACKGROUNDS if _distinct(name, colour)]))
    size = str(rng.choice(list(SIZES), p=[0.25, 0.5, 0.25]))
    radius = rng.uniform(*SIZES[size])
    t = np.linspace(0.0, 1.0, frames)
    phrase, path = MOTIONS[motion]
    return Scene(
        shape=shape,
        colour=colour,
        background=background,
        path=_fit(path(t, rng), radius + 2),
        motion=motion,
        radius=np.full(1, radius),
        angle=np.full(1, rng.uniform(-0.25, 0.25)),
        shaded=bool(rng.random() < 0.3),
        tint=(rng.uniform(0.92, 1.06), rng.uniform(0.85, 1.1)),
        prompt=caption(
            shape,
            colour,
            background,
            phrase if rng.random() < 0.75 else "",
            size if rng.random() < 0.7 else "",
        ),
    )


_MOTION_WEIGHTS = np.array([0.055] * 8 + [0.07, 0.07, 0.05, 0.37])


def _distinct(background: str, colour: str) -> bool:
    return float(np.abs(np.subtract(BACKGROUNDS[background], COLOURS[colour])).max()) > 70


def unseen_scene(
    motion: str,
    seed: int = 0,
    *,
    shape: str = "circle",
    colour: str = "red",
    background: str = "grey",
    frames: int = FRAMES,
) -> Scene:
    """A scene with one of UNSEEN_MOTIONS; its caption names no motion."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, frames)
    angle = 4 * math.pi * t**2 if motion == "roll" else np.zeros(1)
    return Scene(
        shape=shape,
        colour=colour,
        background=background,
        path=_fit(UNSEEN_MOTIONS[motion](t, rng), 9.0),
        motion=motion,
        radius=np.full(1, 7.0),
        angle=np.asarray(angle),
        prompt=caption(shape, colour, background),
    )


# --------------------------------------------------------------------------- drawing
def _distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance (pixels, negative inside) of a shape of half extent r centred at 0."""
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * r
    if shape == "triangle":
        s = 1.15 * r
        k = math.sqrt(3.0) / 2
        return torch.maximum(torch.maximum(k * x - 0.5 * y, -k * x - 0.5 * y), y) - 0.5 * s
    if shape == "cross":
        a, b = 1.05 * r, 0.4 * r
        bar = torch.maximum(x.abs() - a, y.abs() - b)
        return torch.minimum(bar, torch.maximum(x.abs() - b, y.abs() - a))
    if shape == "star":
        # Fold the plane into one tenth of the star, then measure to its one edge.
        outer, inner, step = 1.25 * r, 0.55 * r, math.pi / 5
        a = torch.atan2(x, -y)
        a = (torch.remainder(a + step, 2 * step) - step).abs()
        rho = torch.hypot(x, y)
        px, py = rho * torch.cos(a), rho * torch.sin(a)
        ix, iy = inner * math.cos(step), inner * math.sin(step)
        ex, ey = ix - outer, iy
        return ((px - outer) * ey - py * ex) / torch.hypot(ex, ey)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def render(scene: Scene, *, size: int = SIZE) -> Tensor:
    """Draw a scene: (F, size, size, 3) uint8; lengths scale with size / 48."""
    scale = size / SIZE
    path = torch.as_tensor(scene.path * scale, dtype=torch.float32)
    frames = len(path)
    radius = torch.as_tensor(scene.radius * scale, dtype=torch.float32).expand(frames)[:, None, None]
    angle = torch.as_tensor(scene.angle, dtype=torch.float32).expand(frames)[:, None, None]
    axis = torch.arange(size, dtype=torch.float32) + 0.5
    dx = axis[None, None, :] - path[:, 0, None, None]
    dy = axis[None, :, None] - path[:, 1, None, None]
    x, y = torch.cos(angle) * dx + torch.sin(angle) * dy, torch.cos(angle) * dy - torch.sin(angle) * dx
    cover = (0.5 - _distance(scene.shape, x, y, radius)).clamp(0, 1)[..., None]
    paint = torch.tensor(COLOURS[scene.colour], dtype=torch.float32) * scene.tint[0]
    ground = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32) * scene.tint[1]
    if scene.shaded:
        ground = ground * torch.linspace(1.0, 0.72, size)[None, :, None, None]
    return (
        (ground + cover * (paint - ground))
        .clamp(0, 255)
        .round()
        .to(torch.uint8)
        .expand(frames, size, size, 3)
        .contiguous()
    )
