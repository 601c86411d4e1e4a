"""How often the checker errs, on rendered scenes whose truth is known: `python -m fym.embedded.checker`.

Clips are read as rendered, with noise, blurred, and as the embedded model's autoencoder gives them back.
Prints a Markdown table: shares read right, and the distance of tracks from the true centroid in
pixels (median and 95th percentile over frames, of single objects).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fym.embedded import model_path
from fym.embedded.checker import Reading, camera_cosine, read_clip, same_ground, true_steps
from fym.embedded.scenes import KINDS, SIZE, Scene, render, sample_scene

NOISE = 8.0  # standard deviation, of 255
BLUR = 1.0  # standard deviation in pixels of a 48 x 48 frame
COLUMNS = ("objects", "shape", "colour", "background", "one piece", "track", "track_95", "camera")

Degrade = Callable[[Tensor], Tensor]


def noisy(frames: Tensor) -> Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0)) * NOISE
    return (frames + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(frames: Tensor) -> Tensor:
    sigma = BLUR * frames.shape[1] / SIZE
    return torch.from_numpy(np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames.numpy()]))


def reconstructed(model: Path) -> Degrade:
    """What the autoencoder of a model makes of a clip."""
    from fym.families import load_family

    family = load_family("embedded" if model == model_path() else str(model))
    return lambda frames: family.decode_video(family.encode_video(frames))


def compare(reading: Reading, scene: Scene) -> dict[str, float]:
    """Each of COLUMNS that the scene has a truth for: 1 right, 0 wrong, or a number."""
    row = {
        "objects": float(len(reading.tracks) == len(scene.things)),
        "background": float(same_ground(reading.background, scene.background)),
    }
    things = scene.things
    if things:
        row["one piece"] = float(reading.one_piece.mean())
    if things and things[0].shape != "person":
        row["shape"] = float(sorted(reading.shapes) == sorted(t.shape for t in things))
        row["colour"] = float(sorted(reading.colours) == sorted(t.colour for t in things))
    if len(things) == 1 and np.isfinite(reading.track).any():
        error = np.linalg.norm(reading.track - scene.track, axis=1)
        row["track"], row["track_95"] = float(np.nanmedian(error)), float(np.nanpercentile(error, 95))
    if scene.camera.moves and scene.ground.kind != "striped":  # along stripes no motion is seen
        row["camera"] = camera_cosine(reading.camera, true_steps(scene.camera, scene.frames))
    return row


def scenes_of(kind: str, count: int) -> list[Scene]:
    """Scenes drawn with a seed of their own, which neither training nor the held-out prompts use."""
    return [sample_scene(np.random.default_rng((2027, seed)), kind=kind) for seed in range(count)]


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each of COLUMNS over the rows that have it, NaN where none has."""
    out = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if name in row]
        out[name] = float(np.mean(values)) if values else math.nan
    return out


def _cell(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if name == "camera":
        return f"{value:.2f}"
    return f"{value:.2f} px" if name.startswith("track") else f"{100 * value:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=40, help="of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--model", type=Path, default=model_path(), help="whose autoencoder is used")
    args = parser.parse_args()
    degraded: dict[str, Degrade] = {
        "as rendered": lambda frames: frames,
        f"noise {NOISE:g} of 255": noisy,
        f"blur {BLUR:g} px": blurred,
        "autoencoder": reconstructed(args.model),
    }
    print("| scenes | clips | " + " | ".join((*COLUMNS[:-2], "95th percentile", "camera cosine")) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for kind in args.kinds:
        scenes = scenes_of(kind, args.scenes)
        clips = [render(scene) for scene in scenes]
        for name, degrade in degraded.items():
            rows = [compare(read_clip(degrade(c)), s) for c, s in zip(clips, scenes, strict=True)]
            cells = [_cell(column, value) for column, value in means(rows).items()]
            print(f"| {kind} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
