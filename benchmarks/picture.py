"""The README's picture, an animated GIF of fym-motionbench's clips: `python -m benchmarks.picture CASE ...`.

A row a case: the reference, the model without tuning, and two new prompts with the learned motion, from the
clips that `fym motionbench run` kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fym.embedded.scenes import FPS
from fym.motionbench.report.examples import find_clip
from fym.motionbench.suite import cases

ZOOM = 3
PROMPTS = (0, 1)  # of each case


def row(name: str, clips: Path) -> Tensor:
    """(F, 48, width, 3): the clips of one case side by side."""
    [case] = cases(names=[name])
    made = [case.clip()[0]]
    for method, prompt in (("base", PROMPTS[0]), *(("fym", prompt) for prompt in PROMPTS)):
        found = find_clip(clips, method, name, prompt)
        if found is None:
            raise SystemExit(
                f"{clips} has no clip of {method} on {name}: run `fym motionbench run` on it first"
            )
        made.append(found.frames)
    return torch.cat([torch.nn.functional.pad(c, (0, 0, 1, 1, 1, 1), value=255) for c in made], 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--clips", type=Path, default=Path("runs/bench"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/transfer.gif"))
    args = parser.parse_args()
    grid = torch.cat([row(name, args.clips) for name in args.cases], 1)
    large = grid.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
    pictures = [Image.fromarray(frame.numpy()).quantize(128) for frame in large]
    pictures[0].save(args.output, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0)


if __name__ == "__main__":
    main()
