"""How the camera moved, from the background alone, and how well that agrees with a true move."""

from __future__ import annotations

import cv2
import numpy as np

from fym.embedded.scenes import SIZE, Camera

STRIDE = 4  # frames between which a move is measured
FURTHEST = 12.0  # pixels in a step; what moves further is a failed fit
POINTS = np.array([[x, y] for x in (8.0, 40.0) for y in (8.0, 40.0)])  # of a 48 x 48 frame


def camera_steps(video: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(K, 4, 2) by how many pixels four places of the picture move in each step of STRIDE frames.

    Maximises the enhanced correlation coefficient over affine maps (Evangelidis and Psarakis 2008), the
    pixels of `objects` (F, H, W) left out. Places move by 0 where there is nothing to follow. In pixels of a
    48 x 48 frame.
    """
    scale = video.shape[2] / SIZE
    grey = [cv2.GaussianBlur(f, (0, 0), 1.0).mean(-1).astype(np.float32) for f in video]
    free = [1 - cv2.dilate(m.astype(np.uint8), np.ones((5, 5), np.uint8)) for m in objects]
    steps = []
    for i in range(0, len(video) - STRIDE, STRIDE):
        steps.append(_moved(grey[i], grey[i + STRIDE], free[i] & free[i + STRIDE], POINTS * scale) / scale)
    return np.array(steps)


def true_steps(camera: Camera, frames: int) -> np.ndarray:
    """What `camera_steps` of a clip with that camera should be."""

    def at(values: np.ndarray, i: int) -> np.ndarray:
        return values[i : i + 1] if len(values) > 1 else values

    steps = []
    for i in range(0, frames - STRIDE, STRIDE):
        now, then = (
            Camera(at(camera.centre, k), at(camera.zoom, k), at(camera.roll, k)) for k in (i, i + STRIDE)
        )
        x, y = (POINTS - SIZE / 2).T / now.zoom
        c, s = np.cos(now.roll), np.sin(now.roll)
        world = np.stack([c * x - s * y, s * x + c * y], 1) + now.centre
        steps.append(then.to_frame(world) - POINTS)
    return np.array(steps)


def camera_cosine(steps: np.ndarray, truth: np.ndarray, *, still: float = 0.2) -> float:
    """Mean cosine over steps between how the four places move and should; steps without one are left out."""
    v, w = steps.reshape(len(steps), -1), truth.reshape(len(truth), -1)
    size = np.linalg.norm(w, axis=1)
    norm = np.linalg.norm(v, axis=1) * size
    cosine = np.where(norm > 1e-9, (v * w).sum(1) / np.maximum(norm, 1e-9), 0.0)
    moving = size > still
    return float(cosine[moving].mean()) if moving.any() else 0.0


def _moved(first: np.ndarray, second: np.ndarray, free: np.ndarray, points: np.ndarray) -> np.ndarray:
    if min(first.std(), second.std()) < 1.5:
        return np.zeros_like(points)
    window = cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F)
    shift, _ = cv2.phaseCorrelate(first.copy(), second.copy(), window)  # it writes into its arguments
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-4)
    for start in ((0.0, 0.0), shift):
        matrix = np.array([[1, 0, start[0]], [0, 1, start[1]]], np.float32)
        try:
            score, matrix = cv2.findTransformECC(first, second, matrix, cv2.MOTION_AFFINE, stop, free, 3)
        except cv2.error:  # nothing in common
            continue
        if score > 0.6:
            moved = points @ matrix[:, :2].T + matrix[:, 2] - points
            if np.abs(moved).max() < FURTHEST * first.shape[1] / SIZE:
                return moved
    return np.zeros_like(points)
