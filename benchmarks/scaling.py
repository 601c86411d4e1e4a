"""How time and memory grow with the length of the clip and with the rank. Run `python -m benchmarks.scaling`.

qk_norm_rope at 480 x 832 and a Wan block's training step at 240 x 416, for clips of 1 to 81 frames, and
lora_qkv for ranks 4 to 256, all at the width of Wan 2.1 1.3B in bfloat16. Writes
benchmarks/results/scaling.json and docs/images/scaling-*.png; --plot only draws the figures that are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fym.bench import cases, shapes
from fym.bench.cases import Case
from fym.bench.measure import interleave, saved_bytes
from fym.bench.run import machine
from fym.positions import latent_frames

FRAMES = (1, 5, 17, 33, 49, 65, 81)
BLOCK_FRAMES = (1, 5, 17, 33, 49)
RANKS = (4, 8, 16, 32, 64, 128, 256)
DTYPE = torch.bfloat16
STYLES = {"ours": "o-", "naive": "s-", "compile": "^-", "floor": "k--"}
FILE = Path(__file__).parent / "results" / "scaling.json"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def measure(make: Callable[[int], Case], values: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Microseconds per token of forward + backward for each value and side, and saved bytes per token."""
    points = []
    for value in values:
        case = make(value)
        timings = interleave(case.calls("step"), rounds)
        times = {name: timing.median for name, timing in timings.items()}
        if "floor" in times:
            times["floor"] *= case.floor_factor("step")
        kept = {name: saved_bytes(work.forward, work.weights) for name, work in case.sides.items()}
        print(f"{case.name} {value}: " + ", ".join(f"{k} {v * 1e3:.4g} ms" for k, v in times.items()))
        points.append(
            {
                "value": value,
                "tokens": case.num_tokens,
                "us_per_token": {name: time / case.num_tokens * 1e6 for name, time in times.items()},
                "saved_bytes_per_token": {name: size / case.num_tokens for name, size in kept.items()},
            }
        )
    return points


def rope_case(frames: int) -> Case:
    return cases.qk_norm_rope(shapes.WAN_1_3B, (latent_frames(frames), 30, 52), DTYPE)


def block_case(frames: int) -> Case:
    grid = (latent_frames(frames), 15, 26)
    return cases.block(shapes.WAN_1_3B, grid, DTYPE, 16, with_compile=False)


def lora_case(rank: int) -> Case:
    return cases.lora_qkv(shapes.WAN_1_3B, (1, 30, 52), DTYPE, rank)


def plot(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    about = result["machine"]
    titles = {
        "frames": ("qk_norm_rope, 480 × 832", "frames of the clip"),
        "block": ("step of a Wan block, 240 × 416", "frames of the clip"),
        "rank": ("lora_qkv, 1560 tokens, half the heads", "rank"),
    }
    for name, (title, label) in titles.items():
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        points = result[name]
        for side in points[0]["us_per_token"]:
            values = [point["value"] for point in points]
            axes.plot(values, [point["us_per_token"][side] for point in points], STYLES[side], label=side)
        axes.set(title=title, xlabel=label, ylabel="µs per token, forward + backward", yscale="log")
        if name == "rank":
            axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(title=f"{about['cpu']}, {about['threads']} threads", fontsize=8, title_fontsize=8)
        figure.savefig(IMAGES / f"scaling-{name}.png", dpi=120)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.plot:
        result = {
            "machine": machine(),
            "rounds": options.rounds,
            "frames": measure(rope_case, FRAMES, options.rounds),
            "rank": measure(lora_case, RANKS, options.rounds),
            "block": measure(block_case, BLOCK_FRAMES, options.rounds),
        }
        FILE.write_text(json.dumps(result, indent=1) + "\n")
    plot(json.loads(FILE.read_text()))


if __name__ == "__main__":
    main()
