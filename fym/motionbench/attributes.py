"""Readers of attributes, for the exact check of text alignment."""

from __future__ import annotations

from torch import Tensor

from fym.embedded.checker import read_clip


def embedded_world(frames: Tensor) -> dict[str, str]:
    """Shape, colour and background of a clip (F,H,W,3) uint8 of the embedded world, by segmentation.

    shape and colour are those of the largest object. Where there are several, "colours" joins the names of
    all in order, and each colour is the name of an attribute too, whose value is that object's shape.
    """
    reading = read_clip(frames)
    found = {"shape": reading.shape, "colour": reading.colour, "background": reading.background}
    if len(reading.colours) > 1:
        found["colours"] = " and ".join(sorted(reading.colours))
        found.update(zip(reading.colours, reading.shapes, strict=True))
    return found
