"""Foreground and background of a clip (F, H, W, 3) of the embedded world, found from its border.

Objects keep off the outermost pixels, so what is seen there is background. A smooth background (plain,
shaded, gradient) is a quadratic surface fitted to the border of each frame; a structured one (pattern, noise,
photo) is known by the colours that occur on the border of any frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fym.embedded.checker.palette import second_distances, texture_distances

BORDER = 3  # pixels of a 48 x 48 frame
STRUCTURE = 5.0  # mean departure of a blurred border from its surface, of 255, that is no smooth background
PATTERN = 1.6  # the same, from where it may be a faint pattern: naming looks closer
FAINTEST, CLEAR = 36.0, 60.0  # sums of absolute RGB differences; see `_threshold`
RARE = 0.001  # share of border pixels below which a colour is not the background's
SHARE = 0.4  # of a part's own difference: the blurred rim of an object has less
SAME = 15.0  # distance of colours that are taken for the same, see `palette`
BITS = 5  # of each channel, of the colours of a structured background


@dataclass(frozen=True)
class Segmentation:
    """difference (F, H, W): sum of absolute RGB differences to the background; mask: where objects are."""

    difference: np.ndarray
    mask: np.ndarray
    ground: np.ndarray  # (F, H, W, 3) the surface fitted to the border
    structure: float  # mean departure of the border from the surface, noise averaged out
    noise: float  # mean departure of the border from its blurred self

    @property
    def structured(self) -> bool:
        return self.structure > STRUCTURE

    @property
    def patterned(self) -> bool:
        return self.structure > max(PATTERN, 0.25 * self.noise)


def segment(video: np.ndarray) -> Segmentation:
    """Split a clip (F, H, W, 3) float32 in [0, 255]."""
    height, width = video.shape[1:3]
    border = border_mask(height, width)
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 1.2 * height / 48) for f in video])
    departure = blurred - _surface(blurred, border)
    if len(video) > 2:
        departure = (departure[2:] + departure[1:-1] + departure[:-2]) / 3
    structure = float(np.median(np.abs(departure)[:, border].mean((1, 2))))
    noise = float(np.abs(video - blurred)[:, border].mean())
    ground = _surface(video, border)
    if structure > STRUCTURE:
        difference = _unlike_border(blurred, border)
        level = CLEAR
    else:
        difference = np.abs(video - ground).sum(-1)
        level = _threshold(difference[:, border])
    mask = np.stack([_parts(frame, d, level) for frame, d in zip(video, difference, strict=True)])
    return Segmentation(difference, mask, ground, structure, noise)


def _parts(frame: np.ndarray, difference: np.ndarray, level: float) -> np.ndarray:
    """Where a frame differs by more than `level`, without the faint rims of what differs strongly.

    In each connected part: what has more than SHARE of the part's own difference, and between that what
    has the second colour of a texture of the same colour.
    """
    part = (difference > level).astype(np.uint8)
    count, labels = cv2.connectedComponents(part, connectivity=8)
    out = np.zeros(difference.shape, bool)
    for label in range(1, count):
        inside = labels == label
        strong = inside & (difference > SHARE * np.percentile(difference[inside], 80))
        out |= strong
        hull = cv2.convexHull(np.argwhere(strong)[:, ::-1].astype(np.int32))
        faint = inside & ~strong & cv2.fillConvexPoly(np.zeros_like(part), hull, 1).astype(bool)
        if faint.any():
            name = int(texture_distances(np.median(frame[strong], axis=0)[None])[0].argmin())
            out[faint] = second_distances(frame[faint])[:, name] < SAME**2
    return out


def border_mask(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the outermost pixels."""
    edge = max(1, round(BORDER * height / 48))
    mask = np.ones((height, width), bool)
    mask[edge:-edge, edge:-edge] = False
    return mask


def _threshold(border_difference: np.ndarray) -> float:
    """Between FAINTEST and CLEAR: six times the noise of the border."""
    return float(np.clip(6 * np.median(border_difference), FAINTEST, CLEAR))


def _surface(video: np.ndarray, border: np.ndarray) -> np.ndarray:
    """A quadratic in x and y for each frame and channel through the border pixels, outliers left out."""
    height, width = border.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    basis = terms[border]
    out = np.empty_like(video)
    for i, frame in enumerate(video):
        pixels = frame[border]
        keep = np.ones(len(pixels), bool)
        for _ in range(3):
            fitted = np.linalg.lstsq(basis[keep], pixels[keep], rcond=None)[0]
            error = np.abs(pixels - basis @ fitted).sum(-1)
            keep = error <= max(20.0, 3.5 * float(np.median(error)))
        out[i] = terms @ fitted
    return out


def _unlike_border(video: np.ndarray, border: np.ndarray) -> np.ndarray:
    """(F, H, W) distance of each pixel's colour to the nearest colour that the border shows."""
    shift = 8 - BITS
    codes = (np.clip(video, 0, 255).astype(np.int64) >> shift) @ np.array([1 << 2 * BITS, 1 << BITS, 1])
    seen, counts = np.unique(codes[:, border], return_counts=True)
    seen = seen[counts > RARE * counts.sum()]
    present, place = np.unique(codes, return_inverse=True)
    distance = np.full(len(present), np.inf)
    colours, known = _decoded(present), _decoded(seen)
    for colour in known:
        distance = np.minimum(distance, np.abs(colours - colour).sum(-1))
    return distance[place].reshape(codes.shape)


def _decoded(codes: np.ndarray) -> np.ndarray:
    parts = np.stack([codes >> 2 * BITS, codes >> BITS & (1 << BITS) - 1, codes & (1 << BITS) - 1], -1)
    return (parts + 0.5) * (1 << 8 - BITS)
