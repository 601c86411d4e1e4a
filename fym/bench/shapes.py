"""Sizes of the published Wan 2.1 models and of the clips they are tuned on.

F pixel frames, F' latent frames, (F',H',W') token grid, S = F'H'W' tokens, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fym.positions import latent_frames

LATENT_CHANNELS = 16
TEXT_TOKENS = 512
PIXELS_PER_TOKEN = 16  # 8 by the autoencoder, 2 by the patches, in each direction

Grid = tuple[int, int, int]


class Width(NamedTuple):
    """One transformer: layers, heads of head_dim channels, d = heads * head_dim."""

    layers: int
    heads: int
    head_dim: int
    ffn_dim: int

    @property
    def d(self) -> int:
        return self.heads * self.head_dim

    @property
    def axes_dim(self) -> tuple[int, int, int]:
        """Head channels of the (time, row, column) axes of RoPE."""
        space = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * space, space, space


WAN_1_3B = Width(layers=30, heads=12, head_dim=128, ffn_dim=8960)
WAN_14B = Width(layers=40, heads=40, head_dim=128, ffn_dim=13824)
SMALL = Width(layers=2, heads=2, head_dim=16, ffn_dim=64)  # for tests


def grid_of(frames: int, height: int, width: int) -> Grid:
    """The token grid of a clip of `frames` x `height` x `width` pixels."""
    return latent_frames(frames), height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def tokens(grid: Grid) -> int:
    return math.prod(grid)


# 1560 tokens are one latent frame of 480 x 832; 390 one of 240 x 416.
OPS = (6, 30, 52)  # S = 9360
CLIP_480 = (21, 30, 52)  # 81 frames of 480 x 832
BLOCK = (2, 30, 52)  # S = 3120
SPARSE_FULL = (21, 18, 25)  # S = 9450: as many latent frames as 81 frames have
CLIP_FULL, CLIP_SPARSE = (21, 15, 26), (5, 15, 26)  # 81 and 17 frames of 240 x 416
QUICK = (2, 12, 16)
