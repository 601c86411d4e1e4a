"""What a metric is given: a reference clip, another clip that should move like it, and the means to measure.

F frames, H height, W width; frames are (F,H,W,3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from fym.motionbench.embeddings import LAYOUT, Embedder
from fym.motionbench.trackers import LUCAS_KANADE, Tracker
from fym.tracks import Tracks

# Reads what a clip shows, e.g. {"colour": "red", "shape": "star"}.
AttributeReader = Callable[[Tensor], Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two clips to compare, brought to one size and one length.

    The longer clip is cut to the frames of the shorter one, counted from the first frame, and `other` is
    scaled to the reference's size, so that all lengths are pixels of the reference. Tracks are made once, on
    first use; `known_tracks` replaces them where the motion is known. `reader` finds attributes in `other`
    and `wanted` says what its prompt asked for. Raises ValueError for what is no clip of two frames or more.
    """

    reference: Tensor
    other: Tensor
    prompt: str = ""
    reference_prompt: str = ""
    tracker: Tracker = LUCAS_KANADE
    embedder: Embedder = LAYOUT
    known_tracks: tuple[Tracks, Tracks] | None = None
    reader: AttributeReader | None = None
    wanted: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, clip in (("reference", self.reference), ("other", self.other)):
            if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8 or len(clip) < 2:
                shape = f"{tuple(clip.shape)} {clip.dtype}"
                raise ValueError(
                    f"the {name} clip must be (F,H,W,3) uint8 with two frames or more, not {shape}"
                )
        frames = min(len(self.reference), len(self.other))
        object.__setattr__(self, "reference", self.reference[:frames])
        object.__setattr__(self, "other", _scaled(self.other[:frames], self.reference.shape[1:3]))

    @cached_property
    def tracks(self) -> tuple[Tracks, Tracks]:
        """Tracks of the reference and of the other clip, from the same start points."""
        if self.known_tracks is not None:
            return self.known_tracks
        reference = self.tracker.track(self.reference)
        if self.other is self.reference or torch.equal(self.other, self.reference):
            return reference, reference
        return reference, self.tracker.track(self.other)

    @property
    def track_backend(self) -> str:
        return self.tracker.name if self.known_tracks is None else "known tracks"


def _scaled(clip: Tensor, size: torch.Size) -> Tensor:
    height, width = size
    if clip.shape[1:3] == size:
        return clip
    how = cv2.INTER_AREA if clip.shape[1] > height else cv2.INTER_LINEAR
    return torch.from_numpy(
        np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in clip.numpy()])
    )
