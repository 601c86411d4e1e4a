"""Stage 1: which attention heads are spatial and which temporal, from the model's attention on the clip.

A head's attention mass under two bands is compared: w_s on tokens less than c P apart in frame-major order
(its own frame), w_t on tokens less than c P apart in location-major order (its own place, other frames);
rho = w_t / w_s. L layers, H heads, S tokens, P tokens per latent frame.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fym_kernels
from fym.config import HeadsConfig
from fym.errors import UserError
from fym.families.base import Family
from fym.files import write_file

EXACT_TOKENS = 4096  # up to here every query row counts
SAMPLED_ROWS = 2048  # of longer clips, unless heads.rows says otherwise
COSINE_THRESHOLD = 0.8  # the published cosine rule, alpha = 1.25: temporal iff rho > 1 / alpha
SPATIAL, TEMPORAL = 0, 1
FORMAT = 1

Array = NDArray[Any]


@dataclass(frozen=True)
class HeadMap:
    """Masses (L,H), averaged over seeds and noise levels, and the rule that makes kinds of them.

    flips (L,H): passes (one per seed and noise level) that alone would have put the head on the other side.
    """

    spatial_mass: Array
    temporal_mass: Array
    flips: Array
    rule: str
    threshold: float
    topk: int
    band: float
    seeds: int
    sigmas: list[float]
    model_id: str
    model_hash: str
    grouping: str = "classified"  # or "random", "all": see config.HeadsConfig
    grouping_seed: int = 0

    @property
    def rho(self) -> Array:
        return self.temporal_mass / np.maximum(self.spatial_mass, 1e-30)

    @property
    def kind(self) -> Array:
        """(L,H) int8: 0 spatial, 1 temporal; in grouping random, each layer's kinds dealt out anew."""
        kind = judge(self.rho, self.rule, self.threshold, self.topk)
        if self.grouping == "random":
            kind = np.random.default_rng(self.grouping_seed).permuted(kind, axis=1)
        return kind

    def temporal_heads(self, layer: int) -> Tensor:
        return self._heads(layer, TEMPORAL)

    def spatial_heads(self, layer: int) -> Tensor:
        return self._heads(layer, SPATIAL)

    def _heads(self, layer: int, kind: int) -> Tensor:
        """The sorted heads of a layer that a stage tunes: those of its kind, in grouping all every one."""
        of_kind = self.kind[layer] == kind
        return torch.from_numpy(np.flatnonzero(of_kind | (self.grouping == "all")))

    def save(self, path: Path) -> None:
        """Writes JSON. Besides the fields it holds rho and kind, for readers; `load` derives them anew."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }
        values |= {"format": FORMAT, "rho": self.rho.tolist(), "kind": self.kind.tolist()}
        write_file(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> HeadMap:
        """Reads what `save` wrote; UserError for anything else."""
        try:
            values = json.loads(path.read_text("utf-8"))
            arrays = {
                "spatial_mass": np.array(values["spatial_mass"], np.float64),
                "temporal_mass": np.array(values["temporal_mass"], np.float64),
                "flips": np.array(values["flips"], np.int64),
            }
            if values["format"] != FORMAT or len({a.shape for a in arrays.values()}) != 1:
                raise ValueError("another format")
            added = {"grouping": "classified", "grouping_seed": 0}  # not in the files of earlier versions
            values = {**added, **values, **arrays}
            return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no head map", f"{type(error).__name__}: {error}", "Run fym classify again"
            ) from error


def judge(rho: Array, rule: str, threshold: float, topk: int) -> Array:
    """(L,H) int8 kinds by rule: mass rho >= threshold; cosine rho > 0.8; topk the k largest of the model."""
    if rule == "mass":
        temporal = rho >= threshold
    elif rule == "cosine":
        temporal = rho > COSINE_THRESHOLD
    elif rule == "topk":
        temporal = np.zeros(rho.size, bool)
        temporal[np.argsort(-rho, axis=None, kind="stable")[:topk]] = True
        temporal = temporal.reshape(rho.shape)
    else:
        raise ValueError(f'rule is "{rule}"; allowed: "mass", "cosine", "topk"')
    return temporal.astype(np.int8)


@torch.no_grad()
def classify(
    family: Family,
    latents: Tensor,
    text: Tensor,
    config: HeadsConfig,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> HeadMap:
    """The head map of a clip: latents (C,F',h,w), text (1,L,d_text), conditional branch only.

    One forward pass per seed and noise level, scored as it runs: no S x S map is ever kept. progress is
    called with the number of finished passes.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = family.grid(latents)
    masses = np.zeros((config.seeds * len(config.sigmas), 2, family.num_layers, family.num_heads))
    done = 0
    for _ in range(config.seeds):
        noise = torch.randn(latents.shape, generator=generator).to(latents)[None]
        rows = query_rows(grid, config.rows, generator)
        for level in config.sigmas:
            sigma = torch.tensor([level], device=latents.device)
            noisy = family.schedule.add_noise(latents[None], noise, sigma)
            mass = masses[done]

            def score(
                layer: int, query: Tensor, key: Tensor, mass: Array = mass, rows: Tensor | None = rows
            ) -> None:
                scores = fym_kernels.head_scores(query, key, grid, band=config.band, rows=rows)
                mass[0, layer] = scores.spatial[0].cpu().numpy()
                mass[1, layer] = scores.temporal[0].cpu().numpy()

            with family.attention(on_qk=score):
                family.predict(noisy, family.schedule.timestep(sigma), text)
            done += 1
            if progress is not None:
                progress(done)
    rule = (config.rule, config.threshold, config.topk)
    spatial, temporal = masses.mean(0)
    head_map = HeadMap(
        spatial,
        temporal,
        np.zeros(spatial.shape, np.int64),
        *rule,
        config.band,
        config.seeds,
        list(config.sigmas),
        family.model_id,
        family.model_hash,
        config.grouping,
        seed,
    )
    rule_map = dataclasses.replace(head_map, grouping="classified")
    each = [judge(t / np.maximum(s, 1e-30), *rule) for s, t in masses]
    flips = sum((kind != rule_map.kind).astype(np.int64) for kind in each)
    return dataclasses.replace(head_map, flips=flips)


def mean_map(maps: Sequence[HeadMap]) -> HeadMap:
    """The head map of several clips of one motion: the mean of their masses, judged by their common rule."""
    spatial, temporal = (
        np.mean([getattr(one, name) for one in maps], axis=0) for name in ("spatial_mass", "temporal_mass")
    )
    mean = dataclasses.replace(maps[0], spatial_mass=spatial, temporal_mass=temporal)
    judged = judge(mean.rho, mean.rule, mean.threshold, mean.topk)
    # A pass put a head on one of two sides: its clip's own, or, where it counts as a flip, the other.
    own = [judge(one.rho, one.rule, one.threshold, one.topk) for one in maps]
    passes = mean.seeds * len(mean.sigmas)
    flips = [
        np.where(kind == judged, one.flips, passes - one.flips) for kind, one in zip(own, maps, strict=True)
    ]
    return dataclasses.replace(mean, flips=np.sum(flips, axis=0))


def query_rows(grid: tuple[int, int, int], rows: int, generator: torch.Generator) -> Tensor | None:
    """Sorted (n,) token indices of the query rows that are scored, the same number in every latent frame;
    None = all. rows = 0 takes all of a short clip and SAMPLED_ROWS of a long one."""
    frames, places = grid[0], grid[1] * grid[2]
    tokens = frames * places
    wanted = rows or (tokens if tokens <= EXACT_TOKENS else SAMPLED_ROWS)
    if wanted >= tokens:
        return None
    each = max(1, wanted // frames)
    picked = [
        frame * places + torch.randperm(places, generator=generator)[:each].sort().values
        for frame in range(frames)
    ]
    return torch.cat(picked)
