"""What a tuning step depends on: made anew, or taken over from the last checkpoint of a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fym.adapters import HeadLora
from fym.checkpoint import Checkpoint, load_checkpoint
from fym.config import OPTIONS, Config, StageConfig, TuneConfig
from fym.config_file import load_config
from fym.errors import UserError
from fym.families import Family
from fym.heads import HeadMap
from fym.muon import Muon
from fym.options import get
from fym.runlog import STAGES
from fym.video import Clip

# Options that may change between two goes of one run: they say where things are and what is shown, not what
# is learned. Clip and model are compared by content.
FREE = (
    "output",
    "preset",
    "model.path",
    "model.device",
    "model.offload",
    "model.shard",
    "clip.path",
)
FREE_SECTIONS = ("generate",)
FREE_TUNE = ("checkpoint_every", "keep", "sample_every", "log_every", "recompute", "tensorboard")


@dataclass
class TuningState:
    """All that a step depends on. identity: what the run was started with, checked when it resumes."""

    generator: torch.Generator
    identity: dict[str, Any]
    adapters: dict[str, HeadLora] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    stage: str = STAGES[0]
    step: int = 0

    @property
    def acting(self) -> list[HeadLora]:
        """The adapters in the forward passes of the present stage, of which the last one trains."""
        return [self.adapters[name] for name in STAGES[: STAGES.index(self.stage) + 1]]

    def checkpoint(self) -> Checkpoint:
        tensors = {"generator": self.generator.get_state()}
        for name, adapter in self.adapters.items():
            tensors |= {f"{name}.{key}": value for key, value in adapter.state_dict().items()}
        if self.optimizer is not None:
            for number, values in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        name = f"{STAGES.index(self.stage)}-{self.stage}-{self.step:06d}"
        return Checkpoint(name, tensors, {"stage": self.stage, "step": self.step, "identity": self.identity})

    def enter(self, stage: str, config: Config) -> None:
        """Starts a stage: only its own adapters train, the others stay as they are."""
        for name, adapter in self.adapters.items():
            adapter.requires_grad_(name == stage)
        self.stage, self.step = stage, 0
        settings = config.spatial if stage == "spatial" else config.temporal
        self.optimizer = new_optimizer(list(self.adapters[stage].parameters()), settings, config.tune)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over generator, step and optimiser from a checkpoint of the present stage."""
        self.step = checkpoint.record["step"]
        self.generator.set_state(checkpoint.tensors["generator"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = value
        if self.optimizer is not None:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def begin(
    config: Config, run_dir: Path, family: Family, clips: Sequence[Clip], head_map: HeadMap
) -> tuple[TuningState, bool]:
    """The state of the last checkpoint (and True), or a new one.

    Raises UserError if no head is temporal, or model or clips are not those of the checkpoint.
    """
    identity = {"model": family.model_hash, "clip": " ".join(clip.sha256 for clip in clips)}
    state = TuningState(torch.Generator().manual_seed(config.tune.seed), identity)
    kinds = {
        "spatial": (config.spatial, head_map.spatial_heads),
        "temporal": (config.temporal, head_map.temporal_heads),
    }
    for name, (settings, heads) in kinds.items():
        state.adapters[name] = HeadLora(
            [heads(n) for n in range(family.num_layers)],
            num_heads=family.num_heads,
            head_dim=family.head_dim,
            rank=settings.rank,
            alpha=settings.alpha,
            targets="".join(p for p in config.tune.targets if p in family.targets),
            generator=state.generator,
        ).to(family.device)
    if not state.adapters["temporal"].num_parameters():
        raise UserError(
            "No attention head is temporal",
            f"the largest ratio is {head_map.rho.max():.2f}, the threshold {head_map.threshold:g}",
            "Use a lower --set heads.threshold, or --rule topk with --set heads.topk",
        )
    checkpoint = load_checkpoint(run_dir / "checkpoints")
    stage = checkpoint.record["stage"] if checkpoint is not None else "spatial"
    state.enter(stage, config)
    if checkpoint is not None:
        _take_over(state, checkpoint, run_dir)
    return state, checkpoint is not None


def _take_over(state: TuningState, checkpoint: Checkpoint, run_dir: Path) -> None:
    if checkpoint.record["identity"] != state.identity:
        changed = " and ".join(
            k for k, v in state.identity.items() if checkpoint.record["identity"].get(k) != v
        )
        raise UserError(
            f"{run_dir} holds a run with another {changed}",
            "its content is not what it was",
            "Use --fresh to start over, or another directory with -o",
        )
    for name, adapter in state.adapters.items():
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in checkpoint.tensors.items()
            if key.startswith(f"{name}.")
        }
        adapter.load_state_dict(own)
    state.restore(checkpoint)


def new_optimizer(
    parameters: Sequence[Tensor], settings: StageConfig, tune: TuneConfig
) -> torch.optim.Optimizer | None:
    """None where there are no parameters, since no head is of the stage's kind."""
    if not parameters:
        return None
    rate, decay = settings.learning_rate, settings.weight_decay
    if tune.optimizer == "muon":
        return Muon(parameters, rate, decay)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)


def check_same_run(config: Config, run_dir: Path) -> None:
    """UserError if the directory holds a run with other settings, with the list of what differs."""
    path = run_dir / "config.toml"
    if not path.exists() or not (run_dir / "checkpoints").is_dir():
        return
    before = load_config(path)
    differing = [
        f"{name}: {get(before, name)!r} there, {get(config, name)!r} now"
        for name, option in OPTIONS.items()
        if name not in FREE
        and option.section not in FREE_SECTIONS
        and not (option.section == "tune" and option.leaf in FREE_TUNE)
        and get(before, name) != get(config, name)
    ]
    if differing:
        raise UserError(
            f"{run_dir} holds another run",
            differing[0] if len(differing) == 1 else "\n".join(f"  - {line}" for line in differing),
            "Use --fresh to start over, or another directory with -o",
        )
