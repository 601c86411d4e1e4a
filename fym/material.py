"""What tuning works on: the clip, its latents, whole, frame by frame and sparsely picked, and the caption.

F pixel frames, F' latent frames, C,h,w latent channels and size. Everything encoded is cached by content.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fym.cache import get_or_make
from fym.config import ClipConfig, TemporalConfig
from fym.errors import UserError
from fym.families.base import Family
from fym.positions import COMPRESSION, latent_frames, sparse_frames, time_positions
from fym.video import Clip, read_clip


def read_reference(config: ClipConfig, family: Family) -> Clip:
    """The reference clip at the model's size (or the configured one), cut to 4k+1 frames.

    Raises UserError for all that read_clip refuses and for a size that does not fit the model.
    """
    height, width = config.height or family.default_height, config.width or family.default_width
    family.check_size(height, width)
    clip = read_clip(
        config.path,
        start=config.start,
        frames=config.frames,
        at_most=family.default_frames,
        height=height,
        width=width,
    )
    whole = (len(clip.frames) - 1) // COMPRESSION * COMPRESSION + 1
    return Clip(clip.frames[:whole], clip.fps, clip.path, clip.sha256, clip.notes)


class Material:
    """Latents and embeddings of one clip for one model, made on first use."""

    def __init__(self, family: Family, clip: Clip, config: ClipConfig, cache_dir: Path) -> None:
        self.family, self.clip, self.caption, self.cache_dir = family, clip, config.prompt, cache_dir
        self._key = {
            "clip": clip.sha256,
            "start": config.start,
            "size": list(clip.frames.shape),
            "encoders": family.encoder_hash,
        }
        self._sparse: dict[tuple[int, ...], Tensor] = {}

    @property
    def num_frames(self) -> int:
        return len(self.clip.frames)

    @cached_property
    def text(self) -> Tensor:
        """(1,L,d_text), the caption."""
        return self._cached(
            lambda: self.family.encode_prompts([self.caption]),
            kind="text",
            prompt=self.caption,
            length=self.family.defaults.max_sequence_length,
            dtype=str(self.family.dtype),
        )

    @cached_property
    def latents(self) -> Tensor:
        """(C,F',h,w), the whole clip."""
        return self._cached(lambda: self.family.encode_video(self.clip.frames), kind="clip")

    @cached_property
    def frame_latents(self) -> Tensor:
        """(F,C,1,h,w), every frame encoded alone."""
        frames = self.clip.frames
        return self._cached(
            lambda: torch.stack([self.family.encode_video(frames[i : i + 1]) for i in range(len(frames))]),
            kind="frames",
        )

    def sparse_latents(self, index: Tensor) -> Tensor:
        """(C,F'_s,h,w), the picked frames encoded as a clip of their own."""
        key = tuple(index.tolist())
        if key not in self._sparse:
            self._sparse[key] = self._cached(
                lambda: self.family.encode_video(self.clip.frames[index]), kind="sparse", index=list(key)
            )
        return self._sparse[key]

    def _cached(self, make: Callable[[], Tensor], **parts: object) -> Tensor:
        made = get_or_make(self.cache_dir, {**self._key, **parts}, lambda: {"tensor": make()})
        return made["tensor"].to(self.family.device)


class SparseClip:
    """Stage 3's data: sparsely picked frames of the clip and where they sit in time."""

    def __init__(self, material: Material, config: TemporalConfig) -> None:
        if material.num_frames < config.sparse_frames:
            most = (material.num_frames - 1) // COMPRESSION * COMPRESSION + 1
            raise UserError(
                f"{material.clip.path} is too short",
                f"{material.num_frames} frames, and sparse sampling picks {config.sparse_frames} of them",
                f"Use --sparse-frames {most}" if most >= 5 else "Use a longer clip",
            )
        self.material, self.config = material, config
        self._random = config.picking in ("phase", "groups")
        self._fixed = None if self._random else self._view(self._pick(None))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (C,F'_s,h,w) and time positions (F'_s,); random with picking "phase" and "groups"."""
        return self._fixed if self._fixed is not None else self._view(self._pick(generator))

    @property
    def frame_index(self) -> list[int]:
        """The picked frames, the same at every step; for a random picking those of one draw."""
        generator = torch.Generator().manual_seed(0) if self._random else None
        return [int(i) for i in self._pick(generator)]

    def _pick(self, generator: torch.Generator | None) -> Tensor:
        return sparse_frames(
            self.material.num_frames,
            self.config.sparse_frames,
            picking=self.config.picking,
            frames=self.material.clip.frames,
            rng=generator,
        )

    def _view(self, index: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.material.num_frames
        if self.config.latents == "encode":
            return self.material.sparse_latents(index), time_positions(index, whole, self.config.positions)
        # The latent frames of the full clip nearest to the places of the groups; they sit where they are.
        nearest = (index[::COMPRESSION] / COMPRESSION).round().long().clamp(max=latent_frames(whole) - 1)
        latents = self.material.latents[:, nearest.to(self.material.latents.device)]
        stride = self.config.positions == "stride"
        return latents, nearest.double() if stride else time_positions(index, whole, self.config.positions)
