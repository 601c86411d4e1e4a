"""What can go wrong and can be known beforehand: checked before a model is loaded or a step is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fym.config import Config
from fym.errors import UserError
from fym.files import check_writable
from fym.trackers import check_tracker
from fym.video import output_kind, read_clip

LOOK_AHEAD = 81  # frames decoded to find damage early: the most that Wan's models take by default
SLUG_LENGTH = 40  # characters of a prompt in a file name


@dataclass(frozen=True)
class Job:
    """One clip to generate."""

    prompt: str
    seed: int
    path: Path


def run_directory(config: Config) -> Path:
    """Where a run writes: the configured place, or runs/ and the first clip's name."""
    return Path(config.output) if config.output else Path("runs") / Path(config.clip.path[0]).stem


def check_training(config: Config) -> None:
    """All that `fym train` needs and that is known without the model; UserError for the first that fails."""
    check_clip(config, shortest=config.temporal.sparse_frames)
    if not config.clip.prompt or not all(prompt.strip() for prompt in config.clip.prompt):
        raise UserError(
            "The prompt is empty",
            "tuning needs the clip described in words, so that what is new in it is the motion",
            'Give it with --prompt "a red ball bounces"',
        )
    check_prompts(config.generate.prompts)
    if config.model.offload and config.tune.recompute != "block":
        raise UserError(
            f"model.offload does not go with tune.recompute = {config.tune.recompute}",
            "the backward pass gets a block's weights only where the block runs again",
            "Add --set tune.recompute=block",
        )
    check_tracker(config.tune)
    check_writable(run_directory(config))


def check_clip(config: Config, *, shortest: int = 2) -> None:
    """Every reference clip can be decoded and has at least `shortest` frames from its start on."""
    clip = config.clip
    if not clip.path or not all(clip.path):
        raise UserError(
            "No clip", "the reference clip is what the motion is learned from", "Give the path of a video"
        )
    prompts, clips = len(clip.prompt), len(clip.path)
    if prompts > 1 and prompts != clips:
        raise UserError(
            f"There are {prompts} prompts and {clips} clip{'s' if clips > 1 else ''}",
            "each describes one reference clip",
            "Give one --prompt for all clips, or one for each in the same order",
        )
    look = max(LOOK_AHEAD, shortest)
    for path in clip.path:
        # Only the number of frames counts here, so they are kept small.
        small = read_clip(
            path,
            start=clip.start,
            frames=clip.frames,
            at_most=look,
            height=32,
            fps=clip.fps,
            crop=clip.region,
        )
        found = len(small.frames)
        if found < shortest:
            sparse = (found - 1) // 4 * 4 + 1
            raise UserError(
                f"{path} is too short",
                f"{found} frames from frame {clip.start} on, and sparse sampling picks {shortest} of them",
                f"Use --sparse-frames {sparse} or a longer clip" if sparse >= 5 else "Use a longer clip",
            )


def check_prompts(prompts: list[str]) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            which = "The prompt" if len(prompts) == 1 else f"Prompt {index + 1} of {len(prompts)}"
            raise UserError(
                f"{which} is empty", "it says what the new clip shows", "Describe the new clip in words"
            )


def plan_generation(config: Config) -> list[Job]:
    """One job per prompt and seed, with its file; raises UserError where names collide or cannot be written.

    `generate.output` may hold {prompt}, {index} and {seed}. A name without them gets -<index> where there are
    several prompts and -s<seed> where there are several seeds: out.mp4 becomes out-0-s3.mp4.
    """
    seeds, pattern = config.generate.seeds, config.generate.output
    prompts = config.generate.prompts or config.clip.prompt
    if not prompts:
        raise UserError("No prompt", "it says what the new clip shows", 'Give --prompt "a blue cube on sand"')
    check_prompts(prompts)
    if not re.search(r"\{(prompt|index|seed)\}", pattern):
        path = Path(pattern)
        added = ("-{index}" if len(prompts) > 1 else "") + ("-s{seed}" if len(seeds) > 1 else "")
        pattern = str(path.with_name(path.stem + added + path.suffix))
    unknown = re.findall(r"\{(?!prompt\}|index\}|seed\})[^}]*\}?", pattern)
    if unknown:
        raise UserError(
            f"{pattern} is no name", f"{unknown[0]} stands for nothing", "Use {prompt}, {index} or {seed}"
        )
    jobs = []
    for index, prompt in enumerate(prompts):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].strip("-") or "clip"
        for seed in seeds:
            name = (
                pattern.replace("{prompt}", slug).replace("{index}", str(index)).replace("{seed}", str(seed))
            )
            jobs.append(Job(prompt, seed, Path(name)))
    if len({job.path for job in jobs}) < len(jobs):
        raise UserError(
            f"{config.generate.output} names several clips alike",
            f"there are {len(prompts)} prompts and {len(seeds)} seeds",
            "Put {index} and {seed} into the name, and every seed once",
        )
    for job in jobs:
        output_kind(job.path)
        check_writable(job.path.parent)
    return jobs
