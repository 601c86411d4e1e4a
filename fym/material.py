"""What tuning works on: the clip, its latents, whole, frame by frame and sparsely picked, and the caption.

F pixel frames, F' latent frames, C,h,w latent channels and size. Everything encoded is cached by content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fym.cache import get_or_make
from fym.camera import course, moving_time, turned
from fym.config import ClipConfig, Config, TemporalConfig
from fym.errors import UserError
from fym.families.base import Family
from fym.positions import COMPRESSION, latent_frames, sparse_frames, time_positions
from fym.video import Clip, read_clip

RANDOM_PICKING = ("phase", "groups")
TURNED = 0.2  # radians
PERSON = re.compile(r"\b(person|people|(wo)?m[ae]n|boys?|girls?|child(ren)?|dancers?)\b", re.IGNORECASE)


def read_references(config: ClipConfig, family: Family) -> list[Clip]:
    """The reference clips at the model's size (or the configured one), cut to 4k+1 frames.

    Raises UserError for all that read_clip refuses and for a size that does not fit the model.
    """
    height, width = config.height or family.default_height, config.width or family.default_width
    family.check_size(height, width)
    clips = []
    for path in config.path:
        clip = read_clip(
            path,
            start=config.start,
            frames=config.frames,
            at_most=family.default_frames,
            height=height,
            width=width,
            fps=config.fps,
            crop=config.region,
        )
        whole = (len(clip.frames) - 1) // COMPRESSION * COMPRESSION + 1
        clips.append(replace(clip, frames=clip.frames[:whole]))
    return clips


def for_what_moves(config: Config, clips: Sequence[Clip]) -> Config:
    """The configuration as it is for references of moving objects, or that for a moving camera or a person.

    A camera that turns about its axis is not learned over other scenes. See `temporal.camera_lowest_noise`,
    `temporal.person_lowest_noise`, `tune.scenes` and docs/method-choices.md.
    """
    temporal, tune = config.temporal, config.tune
    filmed = replace(config, tune=replace(tune, looks=1))
    filmed = _acting(filmed, temporal.camera_lowest_noise, temporal.camera_guidance)
    still = replace(config, tune=replace(tune, scenes=[]))
    if filmed != still and sum(moving_time(clip.tracks) for clip in clips) > len(clips) / 2:
        turns = tune.scenes and any(turned(course(clip.tracks)) > TURNED for clip in clips)
        return replace(filmed, tune=replace(filmed.tune, scenes=[])) if turns else filmed
    if any(map(PERSON.search, config.clip.captions)):
        return _acting(still, temporal.person_lowest_noise, temporal.person_guidance)
    return still


def _acting(config: Config, lowest: float, guidance: float) -> Config:
    """From another noise level up, with another guidance scale unless one is asked for; not so below 0."""
    if lowest < 0:
        return config
    generate = config.generate
    if generate.guidance_scale < 0:
        generate = replace(generate, guidance_scale=guidance)
    return replace(config, temporal=replace(config.temporal, lowest_noise=lowest), generate=generate)


def encodes_later(config: TemporalConfig) -> bool:
    """Whether steps have clips encoded that were not before, which takes the VAE."""
    return config.picking in RANDOM_PICKING and config.latents == "encode"


class Material:
    """Latents and embeddings of one clip for one model, made on first use. writes: whether into the cache."""

    def __init__(
        self, family: Family, clip: Clip, caption: str, cache_dir: Path, *, writes: bool = True
    ) -> None:
        self.family, self.clip, self.caption, self.cache_dir = family, clip, caption, cache_dir
        self._writes = writes
        self._key = {
            "frames": hashlib.sha256(clip.frames.contiguous().numpy().data).hexdigest(),
            "size": list(clip.frames.shape),
            "encoders": family.encoder_hash,
        }
        self._encoded: dict[tuple[int, ...] | None, Tensor] = {}

    @property
    def num_frames(self) -> int:
        return len(self.clip.frames)

    @cached_property
    def text(self) -> Tensor:
        """(1,L,d_text), the caption."""
        return self._embedding(self.caption)

    @property
    def latents(self) -> Tensor:
        """(C,F',h,w), the whole clip."""
        return self.encoded(None)

    @cached_property
    def frame_latents(self) -> Tensor:
        """(F,C,1,h,w), every frame encoded alone."""

        def encode() -> Tensor:
            return torch.stack([self.family.encode_video(frame[None]) for frame in self.clip.frames])

        return self._cached(encode, kind="frames")

    def encoded(self, index: Tensor | None) -> Tensor:
        """(C,F'_s,h,w), the picked frames (None: all) encoded as a clip of their own."""
        key = None if index is None else tuple(index.tolist())
        if key not in self._encoded:
            frames = self.clip.frames if index is None else self.clip.frames[index]
            self._encoded[key] = self._cached(
                lambda: self.family.encode_video(frames),
                kind="clip",
                index=None if key is None else list(key),
            )
        return self._encoded[key]

    def _embedding(self, prompt: str) -> Tensor:
        return self._cached(
            lambda: self.family.encode_prompts([prompt]),
            kind="text",
            prompt=prompt,
            length=self.family.defaults.max_sequence_length,
            dtype=str(self.family.dtype),
        )

    def _cached(self, make: Callable[[], Tensor], **parts: object) -> Tensor:
        key = {**self._key, **parts}
        made = get_or_make(self.cache_dir, key, lambda: {"tensor": make()}, writes=self._writes)
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
        self._random = config.picking in RANDOM_PICKING
        self._fixed = None if self._random else self._pick(None)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (C,F'_s,h,w) and time positions (F'_s,); random with picking "phase" and "groups"."""
        return self._view(self._pick(generator) if self._fixed is None else self._fixed)

    def encode(self) -> None:
        """Encodes all that can be encoded before the steps."""
        _ = self.material.text, self.material.latents, self.material.frame_latents
        if self._fixed is not None:
            self._view(self._fixed)

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
            return self.material.encoded(index), time_positions(index, whole, self.config.positions)
        # The latent frames of the full clip nearest to the places of the groups; they sit where they are.
        nearest = (index[::COMPRESSION] / COMPRESSION).round().long().clamp(max=latent_frames(whole) - 1)
        latents = self.material.latents
        latents = latents[:, nearest.to(latents.device)]
        stride = self.config.positions == "stride"
        return latents, nearest.double() if stride else time_positions(index, whole, self.config.positions)
