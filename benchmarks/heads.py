"""Head classification as a measured property of a model: `python -m benchmarks.heads`.

Classifies every rendered reference of fym-motionbench at several noise levels and seeds, one pass each, and
reports how far rho spreads over the heads, how often a head is of the same kind over clips, seeds and levels,
and how the number of temporal heads depends on the threshold. Needs no tuning; minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fym.config import HeadsConfig
from fym.config_file import load_config
from fym.families import Family, load_family
from fym.files import write_file
from fym.heads import classify, judge
from fym.material import Material
from fym.motionbench.case import Case
from fym.motionbench.suite import cases
from fym.video import Clip

SIGMAS = (0.9998, 0.9, 0.7, 0.5)
SEEDS = (0, 1, 2)
THRESHOLDS = (0.5, 0.65, 0.8, 1.0, 1.3, 2.0)

Array = NDArray[np.float64]


def measure(family: Family, chosen: list[Case]) -> Array:
    """rho (cases, sigmas, seeds, layers, heads), one pass each."""
    found = np.empty((len(chosen), len(SIGMAS), len(SEEDS), family.num_layers, family.num_heads))
    with tempfile.TemporaryDirectory() as folder:
        for n, case in enumerate(chosen):
            frames, fps = case.clip()
            clip = Clip(frames, fps, case.name, case.sha256())
            material = Material(family, clip, case.prompt, Path(folder))
            for k, sigma in enumerate(SIGMAS):
                config = HeadsConfig(seeds=1, sigmas=[sigma])
                for s, seed in enumerate(SEEDS):
                    found[n, k, s] = classify(family, material.latents, material.text, config, seed=seed).rho
    return found


def summary(rho: Array, rule: str, threshold: float) -> dict[str, Any]:
    """Figures of `measure`'s result; agreement is with the kind that most passes of the level give a head."""
    kinds = np.stack([judge(one, rule, threshold, 0) for one in rho.reshape(-1, *rho.shape[-2:])])
    kinds = kinds.reshape(rho.shape).astype(np.int64)  # (cases, sigmas, seeds, layers, heads)
    usual = (kinds.mean((0, 2)) > 0.5).astype(np.int64)  # (sigmas, layers, heads)
    levels: dict[str, Any] = {}
    for k, sigma in enumerate(SIGMAS):
        same = kinds[:, k] == usual[k]
        spread = np.median(rho[:, k], axis=(0, 1))
        seeds = (kinds[:, k] == kinds[:, k, :1])[:, 1:]
        levels[str(sigma)] = {
            "temporal_heads": int(usual[k].sum()),
            "same_kind": float(same.mean()),
            "worst_clip": float(same.mean((1, 2, 3)).min()),
            "same_kind_over_seeds": float(seeds.mean()),
            "steady_heads": float((same.mean((0, 1)) >= 0.9).mean()),
            "as_at_first_level": float((usual[k] == usual[0]).mean()),
            "rho_median_of_heads": {
                "least": float(spread.min()),
                "quarter": float(np.quantile(spread, 0.25)),
                "half": float(np.median(spread)),
                "three_quarters": float(np.quantile(spread, 0.75)),
                "most": float(spread.max()),
            },
            "temporal_heads_by_threshold": {
                str(t): float((rho[:, k] >= t).mean((0, 1)).sum()) for t in THRESHOLDS
            },
        }
    return levels


def table(levels: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| noise level | rho of the heads: least, half, most | temporal heads | same kind, all passes "
        "| worst clip | same over seeds | kinds as at the first level |",
        "|---" * 7 + "|",
    ]
    for sigma, row in levels.items():
        rho = row["rho_median_of_heads"]
        shares = [row[n] for n in ("same_kind", "worst_clip", "same_kind_over_seeds", "as_at_first_level")]
        cells = [f"{100 * share:.1f} %" for share in shares]
        spread = f"{rho['least']:.2f}, {rho['half']:.2f}, {rho['most']:.2f}"
        lines.append(f"| {sigma} | {spread} | {row['temporal_heads']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/heads.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(args.model)
    chosen = list(cases(part="synthetic"))
    preset = load_config(None, {"model.path": args.model}).heads
    levels = summary(measure(family, chosen), preset.rule, preset.threshold)
    record = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "model": family.model_hash,
        "rule": preset.rule,
        "cases": len(chosen),
        "seeds": len(SEEDS),
        "levels": levels,
    }
    write_file(args.results, json.dumps(record, indent=1) + "\n")
    print(table(levels))


if __name__ == "__main__":
    main()
