"""The plan of a run: what a user sees before it starts, and all that --dry-run does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fym_kernels
from fym.adapters import HeadLora
from fym.config import Config, StageConfig
from fym.families.base import Family
from fym.families.quantised import num_weights
from fym.heads import HeadMap
from fym.looks import looks
from fym.video import Clip

Table = tuple[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Plan:
    """What will be tuned on what. tokens: of one forward pass, in full of the longest clip. elsewhere: the
    device that is planned for, if it is not `device`."""

    config: Config
    run_dir: Path
    model: str
    parameters: int
    layers: int
    heads: int
    head_dim: int
    dtype: str
    device: str
    clips: Sequence[Clip]
    tokens_frame: int
    tokens_sparse: int
    tokens_full: int
    elsewhere: str = ""

    @classmethod
    def of(
        cls, config: Config, run_dir: Path, family: Family, clips: Sequence[Clip], elsewhere: str = ""
    ) -> Plan:
        frames, height, width = max(tuple(clip.frames.shape[:3]) for clip in clips)
        return cls(
            config,
            run_dir,
            f"{family.model_id} ({', '.join(filter(None, (family.name, family.model_hash[:8])))})",
            num_weights(family.transformer),
            family.num_layers,
            family.num_heads,
            family.head_dim,
            str(family.dtype).removeprefix("torch."),
            str(family.device),
            clips,
            family.tokens(1, height, width),
            family.tokens(config.temporal.sparse_frames, height, width),
            family.tokens(frames, height, width),
            elsewhere,
        )

    def tables(self) -> list[Table]:
        """(title, rows) for the console."""
        config = self.config
        sparse = config.temporal.sparse_frames
        model = [
            ("model", self.model),
            ("transformer", f"{self.parameters / 1e6:,.1f} M parameters, {self.layers} layers"),
            ("attention", f"{self.heads} heads of {self.head_dim}"),
            ("runs in", f"{self.dtype} on {self.elsewhere or self.device}{self._packed()}"),
        ]
        clip = [
            *[row for clip in self.clips for row in _clip_rows(clip)],
            ("tokens", f"{self.tokens_full:,} whole, {self.tokens_sparse:,} sparse ({sparse} frames)"),
        ]
        kernels = [] if self.elsewhere else [("kernels", self._kernels())]
        return [
            ("Model", model),
            ("Clip", clip),
            ("Tuning", [*self._stages(), *kernels, ("output", str(self.run_dir))]),
        ]

    def _stages(self) -> list[tuple[str, str]]:
        def line(stage: StageConfig, tokens: int) -> str:
            return (
                f"{stage.steps} steps of {tokens * stage.batch_size:,} tokens, rank {stage.rank}, "
                f"learning rate {stage.learning_rate:g}"
            )

        config, spatial, temporal = self.config, self.config.spatial, self.config.temporal
        return [
            ("spatial", line(spatial, self.tokens_frame)),
            ("temporal", line(temporal, self.tokens_sparse) + self._whole()),
            *self._looks(),
            ("preset", config.preset),
        ]

    def _looks(self) -> list[tuple[str, str]]:
        wanted, scenes = self.config.tune.looks, len(self.config.tune.scenes)
        if scenes:
            return [("looks", f"{scenes + 1}: the clip's, and its camera over stills of tune.scenes")]
        seen = max(len(looks(caption, wanted)) for caption in self.config.clip.captions)
        if seen > 1:
            return [("looks", f"{seen}: the caption's colours, in it and in the clip, become others")]
        return [("looks", "one: the caption names no colour")] if wanted > 1 else []

    def _whole(self) -> str:
        whole = self.config.temporal.whole_steps
        return f", the last {whole} on all frames" if whole else ""

    def _packed(self) -> str:
        kind = self.config.model.quantise
        return f", the weights of the blocks packed as {kind}" if kind != "none" else ""

    def _kernels(self) -> str:
        """The backend of each op at this dtype, the ops of one backend together."""
        dtype = getattr(torch, self.dtype)
        by_backend: dict[str, list[str]] = {}
        for choice in fym_kernels.explain(torch.device(self.device).type, (dtype,)):
            by = f"{choice.backend} ({choice.reason})"
            if self._packed() and choice.op in ("lora_qkv", "lora_linear"):
                by = "PyTorch (the layers are quantised)"
            by_backend.setdefault(by, []).append(choice.op)
        return "; ".join(f"{backend}: {', '.join(ops)}" for backend, ops in by_backend.items())


def _clip_rows(clip: Clip) -> list[tuple[str, str]]:
    frames, height, width, _ = clip.frames.shape
    return [
        ("clip", clip.path),
        ("frames", f"{frames} at {clip.fps:g} fps, {width}x{height}"),
        *[("note", note) for note in clip.notes],
    ]


def heads_table(head_map: HeadMap, spatial: HeadLora, temporal: HeadLora) -> Table:
    """The result of stage 1 and what it makes trainable."""
    kind, flips = head_map.kind, int((head_map.flips > 0).sum())
    return (
        "Heads",
        [
            ("spatial", f"{int((kind == 0).sum())} heads, {spatial.num_parameters():,} trainable parameters"),
            (
                "temporal",
                f"{int((kind == 1).sum())} heads, {temporal.num_parameters():,} trainable parameters",
            ),
            ("undecided", f"{flips} heads change sides between noise seeds"),
        ],
    )
