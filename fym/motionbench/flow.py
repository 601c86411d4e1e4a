"""Dense optical flow by dynamic inverse search (Kroeger et al., 2016), as OpenCV has it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from fym.tracks import Bytes, Floats

FLOW = f"OpenCV {cv2.__version__} DIS flow, preset medium"


@lru_cache(maxsize=4)
def _search(height: int, width: int) -> Any:
    """One object a size: a small picture changes the scales of the object for all that follow."""
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def grey(frame: Bytes) -> Bytes:
    """(H,W,3) -> (H,W) uint8; flow is found on brightness alone."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def dense_flow(now: Bytes, then: Bytes) -> Floats:
    """Displacement (H,W,2) in pixels of every pixel of `now` (H,W) on its way to `then`."""
    return np.asarray(_search(*now.shape).calc(now, then, None), np.float32)


def sampled(image: Any, flow: Floats) -> Any:
    """What an image shows where the flow leads, bilinear, its border repeated."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
