"""Point tracks of a clip, and how well two clips' tracks agree.

A regular grid of points is followed with pyramidal Lucas-Kanade (OpenCV) and checked forward against
backward. Tracks start in several frames, so that an object which enters late is tracked too, and run from
their start both ways.

Shapes: F frames, H x W pixels, N tracks. A position is (x, y) in pixels of the clip as given, pixel centres
at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

TRACKER = f"OpenCV {cv2.__version__} Lucas-Kanade grid, forward-backward checked"

# Everything below is in pixels of the working image: the clip, enlarged by a whole factor until its short
# side has WORKING_SIDE pixels (48 x 48 is tracked at 144 x 144). Sub-pixel motion of tiny clips is found far
# better there.
WORKING_SIDE = 144
WINDOW = 15
LEVELS = 3
FORWARD_BACKWARD_LIMIT = 1.5  # return to within this distance, or the point counts as lost
STILL_CHANGE = 4.0  # grey levels: a patch that LK cannot follow and that changes less is taken as not moving
APPEARANCE_CHANGE = 60.0  # grey levels: a point further than this from its first colour is on something else

LAG = 4  # frames between the two ends of a velocity: one latent frame of the usual 4x video autoencoders
COMPARABLE = 0.1  # share of the reference's motion that must be seen in the other clip to compare paths
# The same to compare velocities, which need few frames. Of a clip that is noise the tracker sees less than a
# hundredth of this; of the reference under noise of 40 grey levels twice as much, with cosines above 0.9.
FOLLOWED = 0.01
SPEED_LAG = 2  # for path lengths: shorter, because the chord of a turn is shorter than its arc


@dataclass(frozen=True)
class Tracks:
    """Tracks of one clip. A lost point keeps its last position and stays invisible."""

    points: Floats  # (N, F, 2) x, y in pixels
    visible: Bools  # (N, F)
    starts: Ints  # (N,) the frame each track starts in
    size: tuple[int, int]  # (H, W) pixels

    @property
    def dead_zone(self) -> float:
        """Pixels over `LAG` frames below which a point counts as still; tracker jitter is smaller."""
        return max(0.3, 0.002 * float(np.hypot(*self.size)))

    def displacements(self, lag: int = LAG) -> tuple[Floats, Bools]:
        """Displacements (N, F-lag, 2) in pixels, and whether both ends are visible (N, F-lag)."""
        lag = min(lag, self.points.shape[1] - 1)
        return self.points[:, lag:] - self.points[:, :-lag], self.visible[:, lag:] & self.visible[:, :-lag]

    def moves(self) -> tuple[Bools, Bools]:
        """Whether a track is seen to move faster than the dead zone, and whether it is seen (N, F-lag)."""
        step, seen = self.displacements()
        return (np.linalg.norm(step, axis=-1) > self.dead_zone) & seen, seen

    def moving(self) -> Bools:
        """(N,) whether a track anywhere moves faster than the dead zone."""
        return np.asarray(self.moves()[0].any(axis=1), np.bool_)


def track(frames: Tensor | Bytes, *, grid: int = 16, starts: int = 4) -> Tracks:
    """Follow a grid of points through a clip.

    frames: (F,H,W,3) uint8, F >= 2. grid: points along the short side (the long side gets the same spacing).
    starts: number of evenly spread frames in which a grid starts. Returns N = starts * grid points tracks.
    """
    clip = _as_array(frames)
    count, height, width = clip.shape[:3]
    factor = max(1, -(-WORKING_SIDE // min(height, width)))
    images = [_enlarge(frame, factor) for frame in clip]
    smooth = [cv2.GaussianBlur(image, (0, 0), 2.0) for image in images]

    first, born = start_points(clip.shape[:3], grid=grid, starts=starts)
    seeds = ((first + 0.5) * factor - 0.5).astype(np.float32)
    place = np.repeat(seeds[:, None], count, axis=1)
    alive = born[:, None] == np.arange(count)
    _follow(images, smooth, born, range(count), place, alive)
    _follow(images, smooth, born, range(count - 1, -1, -1), place, alive)
    return Tracks(((place + 0.5) / factor - 0.5).astype(np.float32), alive, born, (height, width))


def start_points(clip: tuple[int, ...], *, grid: int = 16, starts: int = 4) -> tuple[Floats, Ints]:
    """Where tracks of a clip (F, H, W) start: positions (N, 2) in pixels and frames (N,); see `track`."""
    count, height, width = clip
    spacing = min(height, width) / grid
    axis_x = (np.arange(round(width / spacing)) + 0.5) * (width / round(width / spacing))
    axis_y = (np.arange(round(height / spacing)) + 0.5) * (height / round(height / spacing))
    place = np.stack(np.meshgrid(axis_x, axis_y), axis=-1).reshape(-1, 2) - 0.5
    first = np.linspace(0, count - 1, max(1, starts) + 1)[:-1].round().astype(np.int64)
    return np.tile(place, (len(first), 1)), np.repeat(first, len(place))


def _as_array(frames: Tensor | Bytes) -> Bytes:
    clip = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or len(clip) < 2:
        raise ValueError(f"a clip to track is (F,H,W,3) uint8 with F >= 2, not {clip.shape} {clip.dtype}")
    return clip


def _enlarge(frame: Bytes, factor: int) -> Bytes:
    if factor == 1:
        return np.ascontiguousarray(frame)
    height, width = frame.shape[:2]
    return np.asarray(
        cv2.resize(frame, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC), np.uint8
    )


def _follow(
    images: list[Any], smooth: list[Any], born: Ints, order: range, place: Floats, alive: Bools
) -> None:
    """Fill `place` (N,F,2) and `alive` (N,F) along `order` (frames), each track from its frame `born` on."""
    # All three colour channels are tracked: a red disc on a blue ground may have no contrast in grey.
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01)
    lucas_kanade = partial(
        cv2.calcOpticalFlowPyrLK, winSize=(WINDOW, WINDOW), maxLevel=LEVELS, criteria=criteria
    )
    height, width = images[0].shape[:2]
    colour = np.stack([_sample(smooth[t], place[n : n + 1, t])[0] for n, t in enumerate(born)])
    for now, then in pairwise(order):
        begun = (born - now) * order.step <= 0
        place[begun, then] = place[begun, now]
        rows = np.flatnonzero(alive[:, now] & begun)
        if not len(rows):
            continue
        old = np.ascontiguousarray(place[rows, now])
        new, found, _ = lucas_kanade(images[now], images[then], old, None)
        back, returned, _ = lucas_kanade(images[then], images[now], new, None)
        tracked = (found[:, 0] == 1) & (returned[:, 0] == 1)
        tracked &= np.linalg.norm(back - old, axis=1) < FORWARD_BACKWARD_LIMIT

        # LK cannot follow a patch without texture; one that stays as it is did not visibly move.
        change = cv2.blur(cv2.absdiff(images[now], images[then]).max(axis=-1), (WINDOW, WINDOW))
        still = ~tracked & (_sample(change, old) < STILL_CHANGE)
        new = np.where(still[:, None], old, new)

        inside = ((new >= -0.5) & (new <= np.array([width - 0.5, height - 0.5]))).all(axis=1)
        same = (
            np.abs(_sample(smooth[then], np.asarray(new, np.float32)) - colour[rows]).max(axis=1)
            < APPEARANCE_CHANGE
        )
        good = (tracked | still) & inside & same
        alive[rows[good], then] = True
        place[rows[good], then] = new[good]


def _sample(image: Any, points: Floats) -> Floats:
    """Image values (N,) or (N,C) at the nearest pixels of points (N,2)."""
    x = np.clip(np.rint(points[:, 0]), 0, image.shape[1] - 1).astype(int)
    y = np.clip(np.rint(points[:, 1]), 0, image.shape[0] - 1).astype(int)
    return np.asarray(image[y, x], np.float32)


def direction(reference: Tracks, other: Tracks) -> float:
    """Same-start-point cosine of velocities, in [-1, 1], 1 is best; nan if there is too little to compare.

    Both clips must have been tracked with the same grid and starts. Over every track and every `LAG`-frame
    step in which the reference moves (faster than its dead zone) and the same start point is visible in both
    clips: the cosine of the two displacements, 0 where the other clip is still. The mean over those steps,
    each weighted by the reference's displacement, so slow jitter counts little. nan if the reference does not
    move or the other clip's points are lost for all but a hundredth of its motion (noise cannot be tracked).
    Unlike best-match fidelity it sees a reversed zoom. Two clips of different size are compared in the
    reference's pixels. Definition: `direction` of fym's metrics.
    """
    if reference.starts.shape != other.starts.shape:
        raise ValueError(f"different grids: {len(reference.starts)} and {len(other.starts)} tracks")
    ref, ref_seen = reference.displacements()
    oth, oth_seen = other.displacements()
    steps = min(ref.shape[1], oth.shape[1])
    ref, oth = ref[:, :steps], oth[:, :steps] * _scale(reference, other)
    ref_length, oth_length = np.linalg.norm(ref, axis=-1), np.linalg.norm(oth, axis=-1)
    weight = np.where(ref_seen[:, :steps] & (ref_length > reference.dead_zone), ref_length, 0.0)
    compared = np.where(oth_seen[:, :steps], weight, 0.0)
    if compared.sum() <= FOLLOWED * weight.sum():
        return float("nan")
    cosine = (ref * oth).sum(-1) / np.maximum(ref_length * oth_length, 1e-9)
    cosine = np.where(oth_length > reference.dead_zone, cosine, 0.0)
    return float(np.average(cosine, weights=compared))


def speed_ratio(reference: Tracks, other: Tracks) -> float:
    """Robust ratio of path lengths per frame, other / reference, in [0, inf), 1 is best; nan if the reference
    is still.

    A clip's length is the mean over its 2-frame steps of the 75th percentile of the displacements among the
    points that move in that step (faster than the dead zone), 0 where none does. The percentile keeps out
    background points that an object's edge drags along. Two clips of different size are compared in the
    reference's pixels. Definition: `speed_ratio` of fym's metrics.
    """
    ref, oth = _speed(reference, np.ones(2, np.float32)), _speed(other, _scale(reference, other))
    return oth / ref if ref > 0 else float("nan")


def _speed(tracks: Tracks, scale: Floats) -> float:
    step, seen = tracks.displacements(SPEED_LAG)
    moves = (np.linalg.norm(step, axis=-1) > tracks.dead_zone * SPEED_LAG / LAG) & seen
    length = np.linalg.norm(step * scale, axis=-1)
    columns = zip(length.T, moves.T, strict=True)
    return float(np.mean([np.quantile(row[moved], 0.75) if moved.any() else 0.0 for row, moved in columns]))


def _scale(reference: Tracks, other: Tracks) -> Floats:
    (ref_h, ref_w), (oth_h, oth_w) = reference.size, other.size
    return np.array([ref_w / oth_w, ref_h / oth_h], np.float32)


def draw_tracks(
    frames: Tensor | Bytes, tracks: Tracks, *, scale: int = 1, tail: int = 12, limit: int = 150
) -> Tensor:
    """The clip, enlarged `scale` times (nearest), with its moving tracks and their fading tails drawn over
    it.

    frames: (F,H,W,3) uint8. tail: frames a tail reaches back. limit: at most so many of the moving tracks.
    Returns (F, scale*H, scale*W, 3) uint8. A track's colour tells where it starts, so two clips can be
    compared. A point is only drawn while it moves or has moved within its tail.
    """
    clip = _as_array(frames)
    fixed = np.rint(((tracks.points + 0.5) * scale - 0.5) * 16).astype(
        int
    )  # OpenCV's fixed point, 4 fraction bits
    rows = _some_moving(tracks, limit)
    colours = _colours(tracks, rows)
    thickness = max(1, round(min(clip.shape[1:3]) * scale / 240))
    drawn = []
    for t, frame in enumerate(clip):
        image = np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)
        paint: Any = np.zeros_like(image)
        alpha: Any = np.zeros(image.shape[:2], np.uint8)
        for age in range(min(tail, t), 0, -1):
            strength = int(235 * (1 - (age - 1) / tail))
            for row, colour in zip(rows, colours, strict=True):
                if tracks.visible[row, t - age] and tracks.visible[row, t - age + 1]:
                    a, b = fixed[row, t - age].tolist(), fixed[row, t - age + 1].tolist()
                    cv2.line(paint, a, b, colour, thickness + 1, cv2.LINE_8, 4)
                    cv2.line(alpha, a, b, strength, thickness, cv2.LINE_AA, 4)
        for row, colour in zip(rows, colours, strict=True):
            path = tracks.points[row, max(0, t - tail) : t + 1]
            if tracks.visible[row, t] and np.ptp(path, axis=0).max() > tracks.dead_zone:
                centre = fixed[row, t].tolist()
                cv2.circle(paint, centre, (thickness + 2) * 16, colour, -1, cv2.LINE_8, 4)
                cv2.circle(alpha, centre, (thickness + 1) * 16, 255, -1, cv2.LINE_AA, 4)
        share = alpha[..., None].astype(np.float32) / 255
        drawn.append((image * (1 - share) + paint * share).round().astype(np.uint8))
    return torch.from_numpy(np.stack(drawn))


def _some_moving(tracks: Tracks, limit: int) -> Ints:
    """At most `limit` moving tracks, spread over the image; the same ones for the same tracks."""
    rows = np.flatnonzero(tracks.moving())
    return np.random.default_rng(0).permutation(rows)[:limit]


def _colours(tracks: Tracks, rows: Ints) -> list[tuple[int, int, int]]:
    """One saturated colour a track: the hue is the direction of its start seen from the image's centre."""
    height, width = tracks.size
    start = tracks.points[rows, tracks.starts[rows]] - np.array([(width - 1) / 2, (height - 1) / 2])
    hue = (np.degrees(np.arctan2(start[:, 1], start[:, 0])) % 360) / 2
    hsv = np.stack([hue, np.full_like(hue, 200), np.full_like(hue, 255)], axis=-1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[:, None], cv2.COLOR_HSV2RGB)[:, 0] if len(rows) else hsv
    return [(int(r), int(g), int(b)) for r, g, b in rgb]
