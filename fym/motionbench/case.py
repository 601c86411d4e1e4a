"""One case of the data set: a reference clip, its caption, and prompts that keep its motion only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fym.embedded.scenes import FPS, SIZE, Scene, render
from fym.errors import UserError
from fym.motionbench.scenes import Look, Motion, film
from fym.video import read_clip


@dataclass(frozen=True)
class Target:
    """A new prompt, and in the synthetic part what it names, e.g. {"shape": "star", "colour": "yellow"}.

    `wanted` has the keys that `fym.motionbench.attributes.embedded_world` reads; see `Look.attributes`.
    """

    prompt: str
    wanted: Mapping[str, str] = field(default_factory=dict)
    look: Look | None = None


@dataclass(frozen=True)
class Source:
    """A clip that was filmed: a video file or a folder of pictures, and whose it is."""

    path: Path
    sha256: str = ""  # of the file; empty where nobody has stated it
    licence: str = "unknown"
    attribution: str = ""
    start: int = 0  # first frame
    frames: int = 0  # 0: all there are
    fps: float = 0.0  # frames per second; 0: as the file says


@dataclass(frozen=True, eq=False)
class Case:
    """A reference and at least three targets (a DAVIS sequence nobody has written prompts for has none).

    Settings are chosen on the cases of the split "development" only; those of "test" confirm them.
    """

    name: str  # "object/zig-zag", unique
    category: str  # one of CATEGORIES, or UNSORTED
    part: str  # one of PARTS
    split: str  # one of SPLITS
    prompt: str  # caption of the reference, naming no motion
    targets: tuple[Target, ...]
    seed: int = 0  # of all that is random in making it
    look: Look | None = None  # of the reference, synthetic only
    motion: Callable[[int], Motion] | None = None  # seed -> the motion, synthetic only
    source: Source | None = None  # real only

    @property
    def file_name(self) -> str:
        """The name without what a file name cannot hold."""
        return case_file_name(self.name)

    @property
    def shown(self) -> Mapping[str, str]:
        """Attributes of the reference; none of a target's is the same. Empty for a real clip."""
        return self.look.attributes if self.look else {}

    @cached_property
    def scene(self) -> Scene | None:
        """The reference with its exact motion: synthetic only."""
        return self._filmed(self.look) if self.look else None

    def ideal(self, target: Target) -> Scene | None:
        """What a perfect transfer shows, the reference's motion in the target's look: synthetic only."""
        return self._filmed(target.look) if target.look else None

    def _filmed(self, look: Look) -> Scene:
        return film(self._moves, look, name=self.name)

    @cached_property
    def _moves(self) -> Motion:
        assert self.motion is not None
        return self.motion(self.seed)

    def clip(
        self, size: int = 0, *, height: int = 0, width: int = 0, at_most: int = 0
    ) -> tuple[Tensor, float]:
        """Frames (F,H,W,3) uint8 and frames per second, rendered or decoded now.

        size: pixels of the side of a square; 0 is 48 for a rendered clip and the file's own for a real one. A
        real one may be cropped and scaled to height x width instead, and cut to `at_most` frames.
        Raises UserError where a file is missing, damaged, or not the one the manifest names.
        """
        if self.scene is not None:
            return render(self.scene, size=size or SIZE), float(FPS)
        assert self.source is not None
        source = self.source
        clip = read_clip(
            source.path,
            start=source.start,
            frames=source.frames,
            at_most=at_most,
            height=size or height,
            width=size or width,
        )
        if source.sha256 and clip.sha256 != source.sha256:
            raise UserError(
                f"{source.path} is not the clip of {self.name}",
                f"its SHA-256 is {clip.sha256[:12]}..., the manifest says {source.sha256[:12]}...",
                "Fetch it again, or correct the manifest",
            )
        return clip.frames[: at_most or None], source.fps or clip.fps

    def sha256(self, size: int = 0) -> str:
        """Of shape and bytes of the frames."""
        return frames_hash(self.clip(size)[0])

    def as_dict(self) -> dict[str, Any]:
        """All but the frames, for JSON."""
        out: dict[str, Any] = {
            "name": self.name,
            "category": self.category,
            "part": self.part,
            "split": self.split,
            "prompt": self.prompt,
            "shown": dict(self.shown),
            "targets": [{"prompt": t.prompt, "wanted": dict(t.wanted)} for t in self.targets],
            "seed": self.seed,
        }
        if self.source is not None:
            out["source"] = {**vars(self.source), "path": str(self.source.path)}
        return out


def case_file_name(name: str) -> str:
    return re.sub(r"[^\w.,-]", "_", name.replace("/", "-"))


def frames_hash(frames: Tensor) -> str:
    """SHA-256 of shape and bytes of frames (F,H,W,3) uint8."""
    digest = hashlib.sha256(repr(tuple(frames.shape)).encode())
    digest.update(frames.contiguous().numpy().tobytes())
    return digest.hexdigest()
