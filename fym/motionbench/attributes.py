"""Readers of attributes, for the exact check of text alignment."""

from __future__ import annotations

from torch import Tensor

from fym.embedded.checker import read_clip


def embedded_world(frames: Tensor) -> dict[str, str]:
    """Shape, colour and background of a clip (F,H,W,3) uint8 of the embedded world, by segmentation."""
    reading = read_clip(frames)
    return {"shape": reading.shape, "colour": reading.colour, "background": reading.background}
