"""Judge the embedded model by its own clips: `python -m fym.embedded.evaluate`.

Held-out prompts are drawn with a seed the training never used. Prints one JSON object; `--sheet FILE.png`
also writes every clip as a strip of frames to look at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image
from torch import Tensor

from fym.embedded import model_path
from fym.embedded.checker import camera_cosine, read_clip, same_ground, true_steps, velocity_cosine
from fym.embedded.scenes import MOTIONS, Scene, sample_scene
from fym.embedded.text import MAX_TOKENS
from fym.embedded.train_vae import evaluate as autoencoder_psnr


def sample(
    pipeline: WanPipeline, prompts: list[str], *, seed: int = 0, batch: int = 8, **overrides: float
) -> Tensor:
    """Clips (N, F, H, W, 3) uint8 of the prompts; clip i starts from noise of seed + i."""
    facts = json.loads((Path(pipeline.config._name_or_path) / "fym.json").read_text())
    call = {
        "num_frames": facts["num_frames"],
        "height": facts["height"],
        "width": facts["width"],
        "num_inference_steps": facts["num_inference_steps"],
        "guidance_scale": facts["guidance_scale"],
        "max_sequence_length": MAX_TOKENS,
        **overrides,
    }
    clips = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        seeds = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        out = pipeline(prompt=part, negative_prompt="", generator=seeds, output_type="np", **call).frames
        clips.append(torch.from_numpy(np.asarray(out)).mul(255).round().to(torch.uint8))
    return torch.cat(clips)


def held_out_scenes(count: int) -> list[Scene]:
    """Plain scenes of the training world that name their motion, drawn with a seed of their own."""
    return _drawn(2026, count, "plain", lambda scene: MOTIONS[scene.motion][0] in scene.prompt)


def held_out_cameras(count: int) -> list[Scene]:
    """Empty scenes under a camera that pans, tilts or zooms, as their captions say; a seed of their own."""

    def suits(scene: Scene) -> bool:
        named = any(f" {verb} " in scene.prompt for verb in ("pans", "tilts", "zooms"))
        # Of checks any step may be seen, of clouds none is.
        readable = scene.ground.kind != "checked" and scene.ground.colour != "cloudy"
        return named and readable and not scene.things

    return _drawn(2027, count, "camera", suits)


def _drawn(seed: int, count: int, kind: str, suits: Callable[[Scene], bool]) -> list[Scene]:
    rng = np.random.default_rng((seed, count))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, kind=kind)
        if suits(scene):
            scenes.append(scene)
    return scenes


def straight_cosine(track: np.ndarray, motion: str) -> float | None:
    """Velocity cosine with a named straight motion; None for the others."""
    words = MOTIONS[motion][0].split()
    steps = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    direction = np.sum([steps[w] for w in words if w in steps], axis=0, initial=0.0)
    if words[0] != "moving":
        return None
    return velocity_cosine(track, np.arange(len(track))[:, None] * np.asarray(direction, float)[None])


def judge(clips: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Shares of clips and frames that show what their prompts say."""
    readings = [read_clip(c) for c in clips]
    pairs = list(zip(readings, scenes, strict=True))
    straight = [c for r, s in pairs if (c := straight_cosine(r.track, s.motion)) is not None]
    return {
        "clips": len(clips),
        "colour": float(np.mean([r.colour == s.colour for r, s in pairs])),
        "background": float(np.mean([same_ground(r.background, s.background) for r, s in pairs])),
        "shape": float(np.mean([r.shape == s.shape for r, s in pairs])),
        "one_object": float(np.mean([len(r.tracks) == 1 for r in readings])),
        "one_piece_frames": float(np.mean([r.one_piece.mean() for r in readings])),
        "straight_motion_cosine": float(np.mean(straight)) if straight else float("nan"),
        "flicker": float(np.mean([r.flicker for r in readings])),
    }


def judge_cameras(clips: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How well named camera moves are followed, by kind of ground."""
    found: dict[str, list[float]] = {}
    for clip, scene in zip(clips, scenes, strict=True):
        cosine = camera_cosine(read_clip(clip).camera, true_steps(scene.camera, scene.frames))
        found.setdefault(scene.ground.kind, []).append(cosine)
    return {f"camera_cosine, {kind}": float(np.mean(cosines)) for kind, cosines in sorted(found.items())}


def sheet(clips: Tensor, path: Path, *, every: int = 6, zoom: int = 2) -> None:
    """One strip of frames a clip, as a PNG."""
    picture = torch.cat([torch.cat(list(clip[::every]), 1) for clip in clips], 0).numpy()
    image = Image.fromarray(picture)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--cameras", type=int, default=30, help="prompts that name a camera's move")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    pipeline = WanPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    overrides = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    given = {k: v for k, v in overrides.items() if v is not None}
    scenes, cameras = held_out_scenes(args.prompts), held_out_cameras(args.cameras)
    clips = sample(pipeline, [s.prompt for s in scenes], **given)
    views = sample(pipeline, [s.prompt for s in cameras], **given)
    if args.sheet:
        sheet(torch.cat([clips, views]), args.sheet)
    figures = judge(clips, scenes) | judge_cameras(views, cameras)
    figures |= {f"autoencoder_psnr_db, {k}": v for k, v in autoencoder_psnr(pipeline.vae, None).items()}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
