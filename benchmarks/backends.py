"""Do the kernels change what is learned, and what time does fym save? Run `python -m benchmarks.backends`.

The embedded model learns one clip with the `tiny` preset: on the cpu kernels, on the reference ones, and with
the naive implementation (`fym.bench.two_stage`) on as many frames and on all of them. Each side runs with
several seeds. The score of a run is the mean velocity cosine over two new prompts and two seeds of
generation; two backends teach the same if their mean scores differ by no more
than two standard errors, from the spread between tuning seeds. Tuning seconds: from encoding the clip to the
last step, without loading the model and generating. Resumable: run it again.
Writes benchmarks/results/backends.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import fym_kernels
from fym.bench import two_stage
from fym.bench.run import machine
from fym.config import Config
from fym.config_file import load_config
from fym.console import QuietConsole
from fym.demo.job import TUNING
from fym.embedded.checker import read_clip, velocity_cosine
from fym.embedded.scenes import FPS, Scene, caption, render, unseen_scene
from fym.families import load_family
from fym.files import write_file
from fym.generate import generate
from fym.material import Material, read_references
from fym.motion_file import load_motion_file
from fym.tune import train
from fym.video import write_clip

MOTION = "spiral"
PROMPTS = (caption("star", "yellow", "blue"), caption("square", "white", "green"))
SEEDS = (0, 1)
TUNING_SEEDS = {"cpu": 3, "reference": 3, "naive": 2, "naive, all frames": 2}  # how many, per side
GOALS = {"naive": 1.5, "naive, all frames": 5.0}  # times the seconds of "cpu"


def run_side(side: str, seed: int, scene: Scene, clip: Path, out: Path, extra: list[str]) -> dict[str, Any]:
    """Tune with one seed and score what was learned; from the file of an earlier go if there is one."""
    folder = out / side.replace(", ", "_").replace(" ", "_") / f"seed-{seed}"
    result_file = folder / "result.json"
    if result_file.exists():
        found: dict[str, Any] = json.loads(result_file.read_text("utf-8"))
        return found
    given = {"clip.path": str(clip), "clip.prompt": scene.prompt, "tune.seed": seed, "preset": "tiny"}
    config = load_config(None, given, extra)
    if side.startswith("naive"):
        seconds, clips = naive_run(config, folder, all_frames=side != "naive")
    else:
        with fym_kernels.use_backend(side):
            seconds, clips = fym_run(config, folder)
    cosines = [velocity_cosine(read_clip(made).track, scene.track) for made in clips]
    outcome = {"side": side, "seed": seed, "seconds": seconds, "cosines": cosines}
    write_file(result_file, json.dumps(outcome, indent=1) + "\n")
    return outcome


def fym_run(config: Config, folder: Path) -> tuple[dict[str, float], list[Any]]:
    """Seconds of each part of the tuning, and a clip for each prompt and seed."""
    run_dir = folder / "run"
    result = train(config, run_dir, console=QuietConsole())
    timings = json.loads((run_dir / "timings.json").read_text("utf-8"))
    motion = load_motion_file(result.motion_file)
    clips = generate(load_family("embedded"), PROMPTS, motion=motion, seeds=SEEDS)
    return {part: timings[part]["seconds"] for part in TUNING}, clips


def naive_run(config: Config, folder: Path, *, all_frames: bool) -> tuple[dict[str, float], list[Any]]:
    """As `fym_run`, with diffusers and PEFT alone; only the motion's adapter takes part in generating."""
    family = load_family("embedded")
    [clip] = read_references(config.clip, family)
    material = Material(family, clip, *config.clip.prompt, folder / "cache")
    started = time.perf_counter()
    _ = material.text, material.latents, material.frame_latents
    encoded = time.perf_counter()
    two_stage.tune(family, config, material, all_frames=all_frames)
    seconds = {"cache": encoded - started, "both stages": time.perf_counter() - encoded}
    family.transformer.set_adapters(["temporal"])
    return seconds, generate(family, PROMPTS, motion=None, seeds=SEEDS)


def figures(outcomes: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each side: mean score and its deviation between seeds, median seconds and their ratio to cpu's."""
    sides: dict[str, dict[str, float]] = {}
    for side in dict.fromkeys(outcome["side"] for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome["side"] == side]
        scores = [statistics.fmean(outcome["cosines"]) for outcome in mine]
        sides[side] = {
            "runs": len(mine),
            "cosine": statistics.fmean(scores),
            "deviation": statistics.stdev(scores),
            "seconds": statistics.median(sum(outcome["seconds"].values()) for outcome in mine),
        }
    for values in sides.values():
        values["times cpu"] = values["seconds"] / sides["cpu"]["seconds"]
    return sides


def same_scores(one: dict[str, float], other: dict[str, float]) -> tuple[float, float]:
    """The difference of two sides' mean scores, and the two standard errors that it may be."""
    error = math.hypot(*(side["deviation"] / math.sqrt(side["runs"]) for side in (one, other)))
    return other["cosine"] - one["cosine"], 2 * error


def table(sides: dict[str, dict[str, float]]) -> str:
    """Markdown, with a line on every claim that these runs can judge."""
    lines = ["| tuned with | seeds | velocity cosine | tuning, s | × cpu |", "|---|---|---|---|---|"]
    for name, side in sides.items():
        lines.append(
            f"| {name} | {side['runs']} | {side['cosine']:.2f} ± {side['deviation']:.2f} "
            f"| {side['seconds']:.1f} | {side['times cpu']:.2f} |"
        )
    lines.append("")
    if "reference" in sides:
        difference, allowed = same_scores(sides["cpu"], sides["reference"])
        verdict = "within" if abs(difference) <= allowed else "NOT within"
        lines.append(f"reference − cpu: {difference:+.3f}, {verdict} ± {allowed:.3f}, two standard errors.")
    for name, goal in GOALS.items():
        if name in sides:
            ratio = sides[name]["times cpu"]
            lines.append(
                f"{name}: {ratio:.2f} × the time of cpu, asked ≥ {goal:g}: {'yes' if ratio >= goal else 'no'}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/backends"))
    parser.add_argument("--set", dest="extra", action="append", default=[], help="a config override, a.b=c")
    others = list(TUNING_SEEDS)[1:]
    parser.add_argument("--against", nargs="*", default=others, choices=others, help="sides besides cpu")
    parser.add_argument("--seeds", type=int, help="tuning seeds of every side, at least 2  [3, of naive 2]")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/backends.json"))
    args = parser.parse_args()
    if args.seeds is not None and args.seeds < 2:
        parser.error("--seeds must be at least 2: what differs between seeds is what scores are judged by")
    seeds = {side: args.seeds or TUNING_SEEDS[side] for side in ("cpu", *args.against)}
    scene = unseen_scene(MOTION)
    clip = args.out / "clip.mp4"
    args.out.mkdir(parents=True, exist_ok=True)
    if not clip.exists():
        write_clip(clip, render(scene), FPS)
    # Seed by seed, so that a drift of the machine meets all sides alike.
    outcomes = [
        run_side(side, seed, scene, clip, args.out, args.extra)
        for seed in range(max(seeds.values()))
        for side in seeds
        if seed < seeds[side]
    ]
    sides = figures(outcomes)
    record = {"machine": machine(), "overrides": args.extra, "sides": sides, "outcomes": outcomes}
    write_file(args.results, json.dumps(record, indent=1) + "\n")
    print(table(sides))


if __name__ == "__main__":
    main()
