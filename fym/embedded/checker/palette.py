"""Names of colours. Distances are in CIELAB with lightness at half weight, since backgrounds are shaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from fym.embedded.scenes import COLOURS
from fym.embedded.scenes.colours import partner

Colour = tuple[float, ...]


def nearest_colour(rgb: np.ndarray, palette: Mapping[str, Colour]) -> str:
    """Name of the palette colour nearest to one colour (3,)."""
    return list(palette)[int(distances(rgb[None], palette.values())[0].argmin())]


def distances(pixels: np.ndarray, colours: Iterable[Colour]) -> np.ndarray:
    """(N, K) squared distances of pixels (N, 3) to colours."""
    table = np.concatenate([pixels, np.array(list(colours))]).astype(np.float32)[None] / 255
    lab = cv2.cvtColor(table, cv2.COLOR_RGB2LAB)[0] * np.array([0.5, 1, 1])
    return np.square(lab[: len(pixels), None] - lab[None, len(pixels) :]).sum(-1)


def second_distances(pixels: np.ndarray) -> np.ndarray:
    """(N, 8) squared distances of pixels to the second colour of a texture in each of COLOURS."""
    return distances(pixels, [partner(c) for c in COLOURS.values()])


def texture_distances(pixels: np.ndarray) -> np.ndarray:
    """(N, 8) squared distances of pixels to the nearer of the two colours of a texture in each of COLOURS."""
    return np.minimum(distances(pixels, COLOURS.values()), second_distances(pixels))
