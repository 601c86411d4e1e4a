"""HDR and BT.2020 pictures as SDR BT.709 ones, the only kind that video models know.

The light of each pixel is worked out in cd/m2 and shown on an SDR screen whose white is HDR's diffuse white,
203 cd/m2 (ITU-R BT.2408). Up to 90 cd/m2 nothing changes; what is brighter is rolled off, so that 1000 cd/m2
becomes white (ITU-R BT.2390-8, section 5.4.1, on the largest of R, G and B: hues stay).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Light = NDArray[np.float32]

# Numbers of ITU-T H.273, which are ffmpeg's.
BT709, BT2020 = 1, 9
PQ, HLG = 16, 18
NAMES = {PQ: "PQ", HLG: "HLG"}

WHITE = 203.0  # cd/m2
PEAK = 1000.0  # HLG's nominal one, and that of most HDR10 films
GAMMA = 2.4  # of an SDR screen, ITU-R BT.1886
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's R, G and B
TO_BT709 = np.array(  # linear light, ITU-R BT.2407
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
# SMPTE ST 2084.
M1, M2 = 2610 / 16384, 2523 / 32
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128


@dataclass(frozen=True)
class Wide:
    """Colours beyond BT.709, by H.273's numbers: PQ, HLG, or an SDR curve with the primaries of BT.2020."""

    transfer: int
    primaries: int

    @classmethod
    def of(cls, transfer: int, primaries: int) -> Wide | None:
        """None for a picture that is BT.709's as it is."""
        return cls(transfer, primaries) if transfer in NAMES or primaries == BT2020 else None

    @property
    def note(self) -> str:
        """What `to_sdr` does, for the user."""
        name = NAMES.get(self.transfer)
        return f"{f'HDR ({name}) tone-mapped' if name else 'BT.2020 converted'} to SDR (BT.709)"

    def to_sdr(self, picture: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """(H,W,3) uint8 in BT.709's colours of full-range 16-bit R'G'B'."""
        light = _light(self.transfer)[picture]
        if self.transfer == HLG:  # the screen's share, ITU-R BT.2100's OOTF
            light *= PEAK * (light @ LUMINANCE)[..., None] ** 0.2
        if self.primaries != BT709:
            light = np.maximum(light @ TO_BT709.T, 0)
        if self.transfer in NAMES:
            brightest = np.maximum(light.max(-1, keepdims=True), 1e-4)
            light *= _rolled_off(brightest) / brightest
        return (255 * np.minimum(light / WHITE, 1) ** (1 / GAMMA) + 0.5).astype(np.uint8)


@cache
def _light(transfer: int) -> Light:
    """Of each 16-bit value: cd/m2, for HLG the scene's light from 0 to 1."""
    value = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        light: NDArray[Any] = _from_pq(value)
    elif transfer == HLG:  # ITU-R BT.2100
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = WHITE * value**GAMMA
    return light.astype(np.float32)


def _rolled_off(light: Light) -> Light:
    """The curve of BT.2390 from PEAK to WHITE."""
    peak = _to_pq(PEAK)
    most = _to_pq(WHITE) / peak
    knee = 1.5 * most - 0.5
    value = np.minimum(_to_pq(light) / peak, 1)
    t = np.maximum(value - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 - 2 * t) * t**2 * most
    return np.asarray(_from_pq(np.where(value < knee, value, bent) * peak), np.float32)


def _to_pq(light: Any) -> Any:
    power = (light / 10_000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def _from_pq(value: Any) -> Any:
    power = value ** (1 / M2)
    return 10_000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)
