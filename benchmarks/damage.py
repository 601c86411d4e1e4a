"""Damage to files, drawn from a seeded generator: what disks, downloads and other people do to bytes."""

from __future__ import annotations

import random

KINDS, CUT_OFF = 8, 0


def damaged(data: bytes, number: int) -> bytes:
    """The `number`-th damaged version of a file; the kinds take turns."""
    draw = random.Random(number)
    place = draw.randrange(len(data))
    # Half of the places lie in the first bytes, where headers are.
    if draw.random() < 0.5:
        place = draw.randrange(min(len(data), 4096))
    length = draw.randint(1, 64)
    piece = draw.randbytes(length)
    kind = number % KINDS
    if kind == CUT_OFF:
        return data[:place]
    if kind == 1:  # one bit
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    if kind == 2:  # some bytes
        return data[:place] + piece + data[place + length :]
    if kind == 3:  # something put in
        return data[:place] + piece + data[place:]
    if kind == 4:  # something lost
        return data[:place] + data[place + length :]
    if kind == 5:  # a page of zeros
        return data[:place] + bytes(len(data[place : place + 4096])) + data[place + 4096 :]
    if kind == 6:  # a piece of the file in another place of it
        other = draw.randrange(len(data))
        return data[:place] + data[other : other + 512] + data[place + 512 :]
    # A figure changed, which keeps JSON and TOML whole: the nearest one after the place.
    for at in [*range(place, len(data)), *range(place)]:
        if chr(data[at]).isdigit():
            return data[:at] + str(draw.randrange(10 ** draw.randint(0, 30))).encode() + data[at + 1 :]
    return data[:-1]
