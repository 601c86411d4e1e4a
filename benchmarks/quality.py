"""Does tuning on one clip make other content move that way? Run `python -m benchmarks.quality`.

Four motions the embedded model never saw in training are rendered, each is learned from its one clip with the
`tiny` preset, and each motion file is rendered with two new prompts and two seeds; so is the model without
adapters. The score is the mean cosine between the per-frame velocities of the object's centroid track and the
true track. Controls: the reference clip itself, and its frozen first frame. Resumable: run it again.
Writes benchmarks/results/quality.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fym.config import load_config
from fym.console import QuietConsole
from fym.embedded.checker import Reading, read_clip, velocity_cosine
from fym.embedded.scenes import FPS, caption, render, unseen_scene
from fym.families import load_family
from fym.generate import generate
from fym.motion_file import load_motion_file
from fym.tune import train
from fym.video import read_clip as read_clip_file
from fym.video import write_clip

MOTIONS = ("spiral", "bounce", "zig-zag", "pendulum")  # figure eight chose the preset
TARGETS = (("star", "yellow", "blue"), ("square", "white", "green"))
SEEDS = (0, 1)


def score(reading: Reading, truth: np.ndarray, target: tuple[str, str, str]) -> dict[str, float]:
    """Cosine with the true track, and which attributes of the prompt the clip shows."""
    shape, colour, background = target
    return {
        "cosine": velocity_cosine(reading.track, truth),
        "shape": float(reading.shape == shape),
        "colour": float(reading.colour == colour),
        "background": float(reading.background == background),
        "one_piece_frames": float(reading.one_piece.mean()),
    }


def run_motion(motion: str, out: Path, extra: list[str]) -> dict[str, Any]:
    """Tune on one rendered clip, generate tuned and base clips, score them."""
    result_file = out / motion.replace(" ", "_") / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    scene = unseen_scene(motion)
    clip_file = result_file.parent / "clip.mp4"
    clip_file.parent.mkdir(parents=True, exist_ok=True)
    frames = render(scene)
    write_clip(clip_file, frames, FPS)
    config = load_config(
        None,
        {"clip.path": str(clip_file), "clip.prompt": scene.prompt, "generate.prompts": []},
        [*extra],
    )
    started = time.perf_counter()
    result = train(config, result_file.parent / "run", console=QuietConsole())
    seconds = time.perf_counter() - started
    timings = json.loads((result.run_dir / "timings.json").read_text())

    family = load_family("embedded")
    prompts = [caption(*target) for target in TARGETS]
    rows: dict[str, list[dict[str, float]]] = {}
    for name, motion_file in (("tuned", load_motion_file(result.motion_file)), ("base", None)):
        clips = generate(family, prompts, motion=motion_file, seeds=SEEDS)
        rows[name] = [score(read_clip(c), scene.track, TARGETS[i // len(SEEDS)]) for i, c in enumerate(clips)]
        for i, clip in enumerate(clips):
            write_clip(result_file.parent / f"{name}_{i}.mp4", clip, FPS)
    own = (scene.shape, scene.colour, scene.background)
    rows["reference itself"] = [score(read_clip(frames), scene.track, own)]
    rows["frozen frame"] = [score(read_clip(frames[:1].expand_as(frames)), scene.track, own)]
    outcome = {"motion": motion, "rows": rows, "timings": timings, "tuning_seconds": seconds}
    result_file.write_text(json.dumps(outcome, indent=1) + "\n")
    return outcome


def step_times(extra: list[str], out: Path) -> dict[str, float]:
    """Seconds per temporal step with sparse frames and with all frames, medians of the same few steps."""
    scene = unseen_scene("spiral")
    clip_file = out / "steps" / "clip.mp4"
    clip_file.parent.mkdir(parents=True, exist_ok=True)
    write_clip(clip_file, render(scene), FPS)
    found = {}
    for name, count in (("sparse", None), ("all frames", 49)):
        run_dir = out / "steps" / name.replace(" ", "_")
        overrides: dict[str, Any] = {
            "clip.path": str(clip_file),
            "clip.prompt": scene.prompt,
            "spatial.steps": 1,
            "temporal.steps": 24,
            "tune.log_every": 1,
        }
        if count:
            overrides["temporal.sparse_frames"] = count
        train(load_config(None, overrides, extra), run_dir, console=QuietConsole())
        log = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
        found[name] = statistics.median([r["seconds"] for r in log if r["stage"] == "temporal"][4:])
    return found


def mean(rows: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def table(outcomes: list[dict[str, Any]], steps: dict[str, float]) -> str:
    """The Markdown table of the README."""
    names = ["tuned", "base", "reference itself", "frozen frame"]
    lines = [
        "| row | velocity cosine | "
        + " | ".join(o["motion"] for o in outcomes)
        + " | colour | background | shape | one piece |"
    ]
    lines.append("|---" * (7 + len(outcomes) - 1) + "|")
    for name in names:
        every = [row for o in outcomes for row in o["rows"][name]]
        cells = [f"{mean(o['rows'][name], 'cosine'):.2f}" for o in outcomes]
        shares = [f"{mean(every, key):.0%}" for key in ("colour", "background", "shape", "one_piece_frames")]
        lines.append(f"| {name} | **{mean(every, 'cosine'):.2f}** | " + " | ".join([*cells, *shares]) + " |")
    parts = ("cache", "classify", "spatial", "temporal")
    spent = {
        p: statistics.median(o["timings"].get(p, {}).get("seconds", 0.0) for o in outcomes) for p in parts
    }
    lines.append("")
    lines.append("Seconds a clip: " + ", ".join(f"{p} {s:.0f}" for p, s in spent.items()) + ".")
    ratio = steps["all frames"] / steps["sparse"]
    sparse, full = steps["sparse"], steps["all frames"]
    lines.append(f"Temporal step: {sparse:.3f} s sparse, {full:.3f} s all frames, ratio {ratio:.1f}.")
    return "\n".join(lines)


def picture(out: Path, motions: list[str], path: Path, *, zoom: int = 3) -> None:
    """An animated GIF, one row a motion: the reference, the model without adapters, two tuned clips."""
    rows = []
    for motion in motions:
        folder = out / motion.replace(" ", "_")
        names = ("clip", "base_0", "tuned_0", f"tuned_{len(SEEDS)}")
        clips = [read_clip_file(folder / f"{name}.mp4").frames for name in names]
        rows.append(torch.cat([torch.nn.functional.pad(c, (0, 0, 1, 1, 1, 1), value=255) for c in clips], 2))
    grid = torch.cat(rows, 1).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    pictures = [Image.fromarray(frame.numpy()).quantize(128) for frame in grid]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--set", dest="extra", action="append", default=[], help="a config override, a.b=c")
    parser.add_argument("--motions", nargs="*", default=list(MOTIONS))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quality.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/transfer.gif"))
    args = parser.parse_args()
    outcomes = [run_motion(motion, args.out, args.extra) for motion in args.motions]
    steps = step_times(args.extra, args.out)
    record = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "overrides": args.extra,
        "temporal_step_seconds": steps,
        "outcomes": outcomes,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(record, indent=1) + "\n")
    picture(args.out, args.motions, args.picture)
    print(table(outcomes, steps))


if __name__ == "__main__":
    main()
