"""Objects of a segmented clip: pieces of the foreground, linked over time; their shapes and colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from fym.embedded.checker.palette import distances, nearest_colour, second_distances, texture_distances
from fym.embedded.checker.segment import Segmentation
from fym.embedded.scenes import COLOURS, SHAPES, SIZE, Ground, Scene, Thing, render_with_masks

SMALLEST, LARGEST = 20, 700  # pixels of an object in a 48 x 48 frame
SECOND = 0.2  # share of pixels of the second colour that makes a texture
LASTING = 0.5  # share of frames that make an object, or a colour that parts objects
FURTHEST = 8.0  # pixels an object may move between two frames
ANGLES = 8  # templates of a shape over its period of rotation
BLURS = (0.0, 1.0, 2.0)  # of the templates, pixels for a radius of 8
PERIODS = {"circle": 0.0, "square": 1 / 4, "triangle": 1 / 3, "star": 1 / 5, "cross": 1 / 4}  # turns


@dataclass(frozen=True)
class Piece:
    """A connected part of the foreground in one frame."""

    centre: np.ndarray  # (2,)
    area: int
    colour: np.ndarray  # (3,) median of its inner pixels
    body: np.ndarray  # (H, W) bool


@dataclass
class Track:
    """An object: its pieces by frame number."""

    pieces: dict[int, Piece] = field(default_factory=dict)

    def path(self, frames: int) -> np.ndarray:
        """(F, 2) centroids, NaN where it is not seen."""
        out = np.full((frames, 2), np.nan)
        for i, piece in self.pieces.items():
            out[i] = piece.centre
        return out

    @property
    def area(self) -> float:
        return float(np.median([p.area for p in self.pieces.values()]))


def pieces_of(video: np.ndarray, parts: Segmentation) -> list[list[Piece]]:
    """The pieces of a plausible size in each frame, largest first; touching objects are parted by colour."""
    smallest = SMALLEST * video.shape[1] * video.shape[2] / SIZE**2
    names = [_names(picture, mask) for picture, mask in zip(video, parts.mask, strict=True)]
    areas = np.array([[_core_area(label == n) for n in range(len(COLOURS))] for label in names])
    lasting = np.flatnonzero((areas >= smallest).mean(0) >= LASTING)
    found = []
    for picture, mask, label in zip(video, parts.mask, names, strict=True):
        layers = [mask]
        if len(lasting) > 1:
            nearest = _spread(label, lasting)
            layers = [mask & (nearest == n) for n in lasting]
        pieces = [p for layer in layers for p in _connected(picture, layer, smallest)]
        found.append(sorted(pieces, key=lambda p: -p.area))
    return found


def _connected(picture: np.ndarray, mask: np.ndarray, smallest: float) -> list[Piece]:
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    pieces = []
    for label in range(1, count):
        area = int(stats[label, cv2.CC_STAT_AREA])
        if smallest <= area <= smallest * LARGEST / SMALLEST:
            body = labels == label
            colour = np.median(picture[_core(body)], axis=0)
            pieces.append(Piece(centroids[label] + 0.5, area, colour, body))
    return pieces


def _names(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W) number of the colour (or texture of that colour) nearest to each pixel; -1 outside the mask."""
    label = np.full(mask.shape, -1)
    if mask.any():
        label[mask] = texture_distances(picture[mask]).argmin(1)
    return label


def _core_area(mask: np.ndarray) -> int:
    """Pixels of a mask without its thin parts, which mixed colours at edges make."""
    return int(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).sum())


def _spread(label: np.ndarray, lasting: np.ndarray) -> np.ndarray:
    """(H, W) the nearest of the lasting colours' cores at every pixel."""
    far = []
    for n in lasting:
        core = cv2.morphologyEx((label == n).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        far.append(
            cv2.distanceTransform(1 - core, cv2.DIST_L2, 3) if core.any() else np.full(label.shape, 1e9)
        )
    return lasting[np.argmin(far, axis=0)]


def link(found: list[list[Piece]], size: int) -> list[Track]:
    """Tracks of the objects, largest first: as many as half of the frames show, at least one if any does.

    Pieces are linked from the middle of the frames that show all objects, forwards and backwards, to the
    piece nearest in place and colour.
    """
    counts = [len(pieces) for pieces in found]
    shown = [c for c in counts if c]
    if not shown:
        return []
    number = max(n for n in range(1, max(shown) + 1) if np.mean([c >= n for c in shown]) >= LASTING)
    if number == 1:
        return [Track({i: pieces[0] for i, pieces in enumerate(found) if pieces})]
    complete = [i for i, c in enumerate(counts) if c >= number]
    start = complete[len(complete) // 2]
    tracks = [Track({start: piece}) for piece in found[start][:number]]
    reach = FURTHEST * size / SIZE
    for order in (range(start + 1, len(found)), range(start - 1, -1, -1)):
        last = [(track.pieces[start], start) for track in tracks]
        for i in order:
            free = list(found[i])
            costs = [
                (_unlike(piece, old) / reach / abs(i - when) ** 0.5, n, m)
                for n, (old, when) in enumerate(last)
                for m, piece in enumerate(free)
            ]
            used_tracks: set[int] = set()
            used_pieces: set[int] = set()
            for cost, n, m in sorted(costs):
                if cost < 1 and n not in used_tracks and m not in used_pieces:
                    used_tracks.add(n)
                    used_pieces.add(m)
                    tracks[n].pieces[i] = free[m]
                    last[n] = (free[m], i)
    return sorted(tracks, key=lambda t: -t.area)


def _unlike(a: Piece, b: Piece) -> float:
    return float(np.linalg.norm(a.centre - b.centre) + np.abs(a.colour - b.colour).sum() / 30)


def colour_of(video: np.ndarray, track: Track) -> str:
    """The colour an object has; of a textured one the one that, with its second colour, fits all pixels."""
    inner = _inner(video, track)
    if not _textured(video, track):
        return nearest_colour(np.median([np.median(pixels, axis=0) for pixels in inner], axis=0), COLOURS)
    pixels = np.concatenate(inner)
    return list(COLOURS)[int(texture_distances(pixels).mean(0).argmin())]


def _inner(video: np.ndarray, track: Track) -> list[np.ndarray]:
    return [video[i][_core(piece.body)] for i, piece in track.pieces.items()]


def _textured(video: np.ndarray, track: Track) -> bool:
    """Whether a good part of an object has the second colour of a texture of its first."""
    shares = [_second_share(pixels) for pixels in _inner(video, track)]
    return bool(np.median(shares) > SECOND)


def _second_share(pixels: np.ndarray) -> float:
    first, second = distances(pixels, COLOURS.values()), second_distances(pixels)
    name = int(np.minimum(first, second).mean(0).argmin())
    return float(np.mean(second[:, name] < first[:, name]))


def shape_of(video: np.ndarray, track: Track, parts: Segmentation) -> str:
    """The shape whose templates fit the object's pieces best, at whatever angle, over all frames."""
    total, textured = np.zeros(len(SHAPES)), _textured(video, track)
    for i, piece in track.pieces.items():
        crop = _normalised(_soft(parts.difference[i], piece, textured), piece.centre)
        for n, shape in enumerate(SHAPES):
            total[n] += np.square(_templates()[shape] - crop).sum((1, 2)).min()
    return SHAPES[int(total.argmin())]


def _soft(difference: np.ndarray, piece: Piece, textured: bool) -> np.ndarray:
    """(H, W) share of a pixel that the object covers: its difference to the background over that inside."""
    full = float(np.median(difference[_core(piece.body)]))
    near = cv2.dilate(piece.body.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    share = np.clip(difference / max(full, 1e-6), 0, 1)
    if textured:
        share[piece.body] = 1
    return np.where(near, share, 0).astype(np.float32)


def _core(body: np.ndarray) -> np.ndarray:
    core = cv2.erode(body.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return core if core.any() else body


def _normalised(mask: np.ndarray, centre: np.ndarray, size: int = 32) -> np.ndarray:
    """The mask cut out around its centroid and scaled so that its area is a quarter of the crop."""
    side = 2 * np.sqrt(mask.sum())
    matrix = np.array([[side / size, 0, centre[0] - side / 2], [0, side / size, centre[1] - side / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(mask.astype(np.float32), matrix, (size, size), flags=flags)


@lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
    """Per shape (N, 32, 32): its mask at angles over its period of rotation."""
    out = {}
    for shape in SHAPES:
        angles = np.linspace(0, 2 * np.pi * PERIODS[shape], ANGLES if PERIODS[shape] else 1, endpoint=False)
        thing = Thing(shape, "white", np.full((len(angles), 2), 24.0), np.full(1, 8.0), angles)
        masks = render_with_masks(Scene((thing,), Ground("black"), frames=len(angles)))[1][0].numpy()
        blurred = [cv2.GaussianBlur(m, (0, 0), b) if b else m for m in masks for b in BLURS]
        out[shape] = np.stack([_normalised(m, np.array([24.0, 24.0])) for m in blurred])
    return out
