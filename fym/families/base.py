"""The interface every model family offers; everything above it knows no model by name.

Shapes: B batch, F pixel frames, F' latent frames, C,h,w latent channels and size, (F',H',W') token grid,
S = F'H'W' tokens in (frame, row, column) order, H heads, D head dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fym.adapters import AdapterStack, HeadLora
from fym.bands import Band
from fym.flow import Schedule

OnQK = Callable[[int, Tensor, Tensor], None]
BeforeStep = Callable[[Tensor, Tensor], Tensor]


@dataclass
class AttentionControl:
    """What the installed attention follows; may be changed between forward passes.

    time_positions: (F',) float64 places of the latent frames on the time axis, None = 0, 1, 2, ...
    on_qk(layer, query, key): called with (B,S,H,D) after norm and RoPE. grid: set by each forward pass.
    band: the part of the clip that the forward pass is given, where other processes have the rest.
    """

    stack: AdapterStack = field(default_factory=AdapterStack)
    time_positions: Tensor | None = None
    on_qk: OnQK | None = None
    band: Band | None = None
    grid: tuple[int, int, int] = (0, 0, 0)
    _axes: dict[tuple[int, int, int], tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def whole_grid(self) -> tuple[int, int, int]:
        """(F',H',W') of the clip, of which `grid` may be a band."""
        sizes = list(self.grid)
        if self.band is not None:
            sizes[self.band.axis] *= self.band.count
        return sizes[0], sizes[1], sizes[2]

    def positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the (time, row, column) axes for the grid of the present forward pass."""
        whole, band = self.whole_grid, self.band
        if whole not in self._axes:
            self._axes[whole] = tuple(torch.arange(n, dtype=torch.float64) for n in whole)
        time = self.time_positions
        if time is not None and len(time) != whole[0]:
            raise ValueError(f"time_positions has {len(time)} entries; the clip has {whole[0]} latent frames")
        axes = list(self._axes[whole])
        if time is not None:
            axes[0] = time
        if band is not None:
            axes[band.axis] = axes[band.axis].chunk(band.count)[band.index]
        return axes[0], axes[1], axes[2]


@dataclass(frozen=True)
class Defaults:
    """What the model was made for, unless told otherwise."""

    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int
    training_shift: float  # of flow matching


class Family(ABC):
    """One loaded model. Its weights are frozen; only adapters given to `attention` take gradients."""

    name: str
    pipeline: Any  # the diffusers pipeline
    transformer: Any  # its DiT
    model_id: str  # "embedded", a hub id or a folder's name
    model_hash: str  # of the transformer's config and weights, see fym.families.fingerprint
    encoder_hash: str  # of what makes latents and text embeddings
    defaults: Defaults
    schedule: Schedule
    lowest_noise: float = 0.0  # from which level on `transformer` acts; below, the model has another one
    layer_groups: tuple[int, ...]  # layers of each kind, in the order in which they are counted
    num_layers: int
    num_heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype  # of the transformer
    targets: str = "qkvo"  # projections that can have an adapter
    quantise: str = "none"  # what the weights of the blocks' linear layers are packed as
    sharded: bool = False  # each process has a part of the weights: all must do every pass together
    recompute: str = "none"  # in the backward pass: "none", "ffn" or "block"; read by `attention`

    @property
    def default_frames(self) -> int:
        return self.defaults.num_frames

    @property
    def default_height(self) -> int:
        return self.defaults.height

    @property
    def default_width(self) -> int:
        return self.defaults.width

    @property
    def default_fps(self) -> float:
        return self.defaults.fps

    def band_axis(self, latents: Tensor, bands: int) -> int | None:
        """Along which axis, 0 time, 1 rows or 2 columns, a forward pass on latents (...,F',h,w) can be split
        into bands that processes work on (fym.bands); None: it cannot."""
        grid = self.grid(latents)
        fitting = (axis for axis in (2, 1, 0) if grid[axis] % bands == 0)
        return None if self.num_heads % bands else next(fitting, None)

    def stack(self, adapters: Sequence[tuple[HeadLora, float]]) -> AdapterStack:
        """Adapters with their strengths, laid out as it is quickest for the model's dtype."""
        return AdapterStack(adapters, fold=self.dtype == torch.float32 and self.quantise == "none")

    @abstractmethod
    def encode_video(self, frames: Tensor) -> Tensor:
        """(F,H,W,3) uint8 to (C,F',h,w) fp32 normalised latents, deterministic. F is 4k+1."""

    @abstractmethod
    def decode_video(self, latents: Tensor) -> Tensor:
        """(C,F',h,w) to (F,H,W,3) uint8."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(N,L,d_text) embeddings, padded as the model's pipeline does it; a family may add rows and columns
        for whatever else it needs, which nothing but its own `predict` and `sample` reads."""

    @abstractmethod
    def tile_vae(self) -> None:
        """Has the VAE work on large frames in overlapping tiles, which takes less memory; UserError where it
        cannot."""

    @abstractmethod
    def shard(self, mesh: DeviceMesh) -> None:
        """Shares the weights of the transformer's blocks out among the processes of `mesh`, all of which must
        call it and from then on do every pass together. UserError for a model of two transformers."""

    @abstractmethod
    def free_encoders(self, *, keep_vae: bool = False) -> None:
        """Gives back the memory of the text encoders and the VAE; they return when they are needed again."""

    @abstractmethod
    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The DiT: noisy latents (B,C,F',h,w), timestep (B,), text (1 or B,L,d_text) to (B,C,F',h,w) fp32."""

    @abstractmethod
    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """(F',H',W') of latents (...,F',h,w)."""

    @abstractmethod
    def tokens(self, num_frames: int, height: int, width: int) -> int:
        """S of a clip of this many frames and this size in pixels."""

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """UserError unless clips of this size in pixels fit the model."""

    @abstractmethod
    def attention(
        self,
        *,
        adapters: Sequence[tuple[HeadLora, float]] = (),
        time_positions: Tensor | None = None,
        on_qk: OnQK | None = None,
    ) -> AbstractContextManager[AttentionControl]:
        """Runs every self-attention through fym_kernels with `adapters` (each with its strength) inside the
        block and puts the model's own attention back, object for object, at its end."""

    @abstractmethod
    def sample(
        self,
        text: Tensor,
        negative: Tensor | None,
        *,
        generator: torch.Generator,
        num_frames: int,
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
        before_step: BeforeStep | None = None,
    ) -> Tensor:
        """(F,H,W,3) uint8 from the model's own pipeline. text, negative: (1,L,d_text).

        before_step: takes the latents (1,C,F',h,w) fp32 and the timestep () of each step to the latents that
        the step starts from.
        """

    @abstractmethod
    def norm_leak(
        self, adapters: Sequence[tuple[HeadLora, float]], latents: Tensor, timestep: Tensor, text: Tensor
    ) -> list[tuple[float, float]]:
        """How far adapters reach the heads they do not touch, through a norm over all heads; per layer.

        Relative change (Frobenius) of the untouched heads' normalised (query, key), the layer's input being
        that of the adapted forward pass of `predict`. 0 where all or no heads are touched, and for families
        that normalise each head by itself.
        """
