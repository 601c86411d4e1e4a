"""The command line: it reads the options, checks what can be checked beforehand and calls the package.

Exit codes: 0 done, 1 a fault of ours, 2 a mistake the user can repair, 130 stopped with Ctrl-C. FYM_DEBUG=1
shows tracebacks. Every option that describes the work is a field of `fym.config`; its help comes from there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fym import __version__
from fym.cli_fields import FieldArgument, FieldOption, read_config, with_fields
from fym.config import to_toml
from fym.console import Console, QuietConsole, duration
from fym.errors import UserError
from fym.files import write_file
from fym.gpus import GPUS
from fym.motionbench.cli import motionbench

# What a run writes into its directory, and so all that --fresh takes away.
RUN_FILES = (
    "config.toml",
    "heads.json",
    "heads.png",
    "train.jsonl",
    "timings.json",
    "motion.safetensors",
    "spatial.safetensors",
    "reference.mp4",
    "scores.json",
    "report.html",
)
RUN_FOLDERS = ("samples", "checkpoints")


MODEL = (
    FieldOption("model.path", "--model"),
    FieldOption("model.dtype", "--dtype"),
    FieldOption("model.device", "--device"),
)
CLIP = (
    FieldArgument("clip.path", "[CLIP]..."),
    FieldOption("clip.start", "--start"),
    FieldOption("clip.frames", "--frames"),
    FieldOption("clip.fps", "--fps"),
    FieldOption("clip.crop", "--crop"),
    FieldOption("clip.height", "--height"),
    FieldOption("clip.width", "--width"),
)
HEADS = (
    FieldOption("heads.rule", "--rule"),
    FieldOption("heads.seeds", "--classify-seeds"),
    FieldOption("heads.rows", "--classify-rows"),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fym")
@click.pass_context
def cli(context: click.Context) -> None:
    """Learn the motion of one clip and give it to new content."""
    command = context.invoked_subcommand
    if _processes() > 1 and command != "train":
        raise UserError(
            f"fym {command} runs in one process",
            "several would do the same work and write the same files",
            "Start it without torchrun or accelerate",
        )


cli.add_command(motionbench)


@cli.command()
@with_fields(
    FieldOption("clip.prompt", "--prompt", multiple=True),
    FieldOption("output", "-o", "--output"),
    FieldOption("preset", "--preset"),
    *CLIP,
    *MODEL,
    *HEADS,
    FieldOption("spatial.steps", "--spatial-steps"),
    FieldOption("temporal.steps", "--temporal-steps"),
    FieldOption("temporal.sparse_frames", "--sparse-frames"),
    FieldOption("temporal.picking", "--picking"),
    FieldOption("temporal.positions", "--positions"),
    FieldOption("tune.targets", "--targets"),
    FieldOption("tune.seed", "--seed"),
    FieldOption("tune.sample_every", "--sample-every"),
    FieldOption("generate.prompts", "--sample-prompt", multiple=True),
)
@click.option("--dry-run", is_flag=True, help="stop after the plan, for which no weights are loaded")
@click.option(
    "--plan-for",
    type=click.Choice(list(GPUS)),
    help="with --dry-run: what it would take on this GPU  [this machine]",
)
@click.option(
    "--fresh", is_flag=True, help="start over; without it the same command goes on where it stopped"
)
def train(dry_run: bool, plan_for: str | None, fresh: bool, **given: Any) -> None:
    """Learn the motion of CLIP, or the one that several clips show.

    Writes motion.safetensors, a report and all that led to it into the run directory.
    """
    config = read_config(given)
    if plan_for and not dry_run:
        raise UserError("--plan-for trains nothing", "that GPU need not be here", "Add --dry-run")
    from fym import checks

    checks.check_training(config)
    from fym import tune
    from fym.ranks import launched

    ranks = launched()
    console = (Console if ranks.first else QuietConsole)(log_every=config.tune.log_every)
    if dry_run:
        for title, rows in tune.plan(config, plan_for or ""):
            console.table(title, rows)
        return
    run_dir = checks.run_directory(config)
    if fresh and ranks.first:
        clear_run(run_dir)
    ranks.wait()
    tune.train(config, run_dir, console=console)
    console.info(f"motion file  {run_dir / 'motion.safetensors'}")
    console.info(f"report       {run_dir / 'report.html'}")


@cli.command()
@with_fields(
    FieldOption("generate.motion", "--motion", multiple=True),
    FieldOption("generate.prompts", "--prompt", multiple=True),
    FieldOption("generate.output", "-o", "--output"),
    FieldOption("generate.seeds", "--seed", multiple=True),
    FieldOption("generate.temporal_scale", "--scale", multiple=True),
    FieldOption("generate.spatial_scale", "--spatial-scale", multiple=True),
    FieldOption("generate.steps", "--steps"),
    FieldOption("generate.guidance_scale", "--guidance-scale"),
    FieldOption("generate.frames", "--frames"),
    FieldOption("generate.height", "--height"),
    FieldOption("generate.width", "--width"),
    *MODEL,
)
def generate(**given: Any) -> None:
    """Make clips: one for every --prompt and --seed, both of which may be given several times."""
    config = read_config(given)
    from fym import checks, video

    jobs = checks.plan_generation(config)
    wanted = config.generate
    console = Console()
    from fym.families import load_family
    from fym.generate import one_clip
    from fym.motion_file import check_matches, check_same_model, load_motion_file

    motions = {name: load_motion_file(name) for name in wanted.motion if name}
    check_same_model([(name, motion.metadata) for name, motion in motions.items()])
    family = load_family(config.model.path, dtype=config.model.dtype, device=config.model.device)
    if config.model.vae == "tiled":
        family.tile_vae()
    for motion in motions.values():
        check_matches(motion, family)
    for number, job in enumerate(jobs, 1):  # one at a time: what is finished is on disk
        console.info(f"{number}/{len(jobs)} {job.path}: {job.prompt} (seed {job.seed})")
        started = time.monotonic()
        acting = [motions[name] for name in wanted.motion if name]
        clip = one_clip(family, wanted, job.prompt, job.seed, motion=acting)
        video.write_clip(job.path, clip, family.default_fps)
        console.info(f"    written after {duration(time.monotonic() - started)}")


@cli.command()
@with_fields(
    *CLIP,
    FieldOption("clip.prompt", "--prompt", multiple=True),
    FieldOption("output", "-o", "--output"),
    *MODEL,
    *HEADS,
    FieldOption("heads.threshold", "--threshold"),
    FieldOption("heads.topk", "--topk"),
    FieldOption("tune.seed", "--seed"),
)
def classify(**given: Any) -> None:
    """Tell the spatial from the temporal attention heads on CLIP: heads.json and a picture of it."""
    config = read_config(given)
    from fym import checks

    checks.check_clip(config)
    run_dir = checks.run_directory(config)
    checks.check_writable(run_dir)
    from fym.tune import classify_clip

    classify_clip(config, run_dir, console=Console(log_every=config.tune.log_every))
    for name in ("heads.json", "heads.png"):
        click.echo(str(run_dir / name))


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--to",
    "layout",
    type=click.Choice(["fym", "comfyui", "diffusers", "kohya"]),
    default="fym",
    show_default=True,
    help="whose names the tensors get; fym: those of a motion file, see docs/motion-file.md",
)
@click.option("-o", "--output", metavar="OUT", help="the file to write  [FILE with the layout in its name]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="number format of the file",
)
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    default=[1.0],
    metavar="NUMBER",
    help="strength of each FILE, in the same order, or one for all  [1.0]",
)
@click.option(
    "--merge", metavar="spatial=NUMBER", help="put the look of the reference in as well, at this strength"
)
@click.option("--compact", is_flag=True, help="only rows of heads with an adapter; for fym alone")
def convert(
    files: tuple[str, ...],
    layout: str,
    output: str | None,
    dtype: str,
    weights: tuple[float, ...],
    merge: str | None,
    compact: bool,
) -> None:
    """Write motion files in the layout of another program, or back in fym's, or several as one file."""
    first = Path(files[0])
    target = Path(output) if output else first.parent / f"{first.stem}.{layout}.safetensors"
    spatial = _merged(merge)
    bad = [weight for weight in weights if not math.isfinite(weight)]
    if bad:
        raise UserError(f"--weight {bad[0]} is no strength", "it is not finite", "Give a number such as 0.7")
    from fym.convert import convert as write_converted
    from fym.convert import noise_levels

    adapter, about = write_converted(
        [Path(file) for file in files],
        target,
        layout=layout,
        dtype=dtype,
        weights=weights,
        spatial=spatial,
        compact=compact,
    )
    size = target.stat().st_size / 1e6
    click.echo(f"{target}: {layout}, {dtype}, rank {adapter.rank}, alpha {adapter.alpha:g}, {size:.2f} MB")
    levels = sorted({level for level in noise_levels(about) if level})
    if levels and layout != "fym":
        some = " and ".join(f"{level:g}" for level in levels)
        click.echo(
            f"tuned at noise levels from {some} up, which fym follows; elsewhere give it strength in those "
            "steps only (docs/motion-file.md)"
        )


def _merged(text: str | None) -> float:
    """The strength in "spatial=0.5"."""
    if text is None:
        return 0.0
    try:
        name, number = text.split("=")
        strength = float(number)
        if name != "spatial" or not math.isfinite(strength):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--merge {text} cannot be read",
            "it is not spatial=NUMBER",
            "Write for example --merge spatial=0.5",
        ) from None
    return strength


@cli.command()
@with_fields(FieldOption("model.path", "--model"))
@click.option(
    "--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="of the page, on 127.0.0.1"
)
@click.option(
    "--runs", default="runs", show_default=True, metavar="DIR", help="where the run directories are"
)
def ui(port: int, runs: str, **given: Any) -> None:
    """Serve a page to tune and generate with a browser, for this machine alone."""
    config = read_config(given)
    from fym.ui import serve

    serve(Path(runs), port=port, model=config.model.path)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="for programs")
def doctor(as_json: bool) -> int:
    """Show the machine, versions and kernels, what is missing and the command that repairs it."""
    from fym.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        report.print(Console())
    return 1 if report.problems else 0


@cli.command()
@click.option(
    "--quick", is_flag=True, help="small shapes and 3 rounds, to see that it works; figures mean nothing"
)
@click.option("--only", multiple=True, metavar="NAME", help="some rows only; may be given several times")
@click.option("--threads", type=click.IntRange(1), help="of the CPU  [as PyTorch chooses]")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="samples of each side")
@click.option(
    "--block-frames",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="latent frames of 480 x 832 (1560 tokens each) in the step of a Wan block",
)
@click.option("--no-compile", is_flag=True, help="without torch.compile, which needs a C++ compiler and time")
@click.option(
    "--stock-malloc", is_flag=True, help="glibc's malloc as it comes, which gives freed memory back"
)
@click.option("--computed", is_flag=True, help="instead: memory and FLOPs of true sizes, from shapes alone")
@click.option("--json", "json_file", metavar="FILE", help="write the figures to FILE; other parts of it stay")
@click.option("--markdown", is_flag=True, help="only print the tables of the --json file for a document")
def bench(
    quick: bool,
    only: tuple[str, ...],
    threads: int | None,
    rounds: int,
    block_frames: int,
    no_compile: bool,
    stock_malloc: bool,
    computed: bool,
    json_file: str | None,
    markdown: bool,
) -> None:
    """Measure the kernels against the naive implementation, torch.compile and the machine's limits."""
    if markdown and not json_file:
        raise UserError("--markdown has nothing to print", "it reads a file", "Add --json FILE")
    from fym.bench import run

    path = Path(json_file) if json_file else None
    if markdown and path is not None:
        click.echo(run.as_markdown(run.load(path)))
        return
    import torch

    if threads:
        torch.set_num_threads(threads)

    def say(text: str) -> None:
        click.echo(text, err=True)

    if computed:
        result = run.compute(say)
    else:
        from fym.bench.targets import Options

        options = Options(
            rounds=3 if quick else rounds,
            quick=quick,
            with_compile=not no_compile,
            stock_malloc=stock_malloc,
            block_frames=block_frames,
        )
        result = run.measure(options, only, say)
    if path is not None:
        run.save(path, run.merged(path, result))
    run.show(result)


@cli.command()
@click.argument("path", default="fym.toml")
@with_fields(FieldOption("preset", "--preset"), FieldOption("model.path", "--model"))
@click.option("--force", is_flag=True, help="replace a file that is there")
def init(path: str, force: bool, **given: Any) -> None:
    """Write a commented configuration file with every option to PATH (fym.toml)."""
    config = read_config(given)
    target = Path(path)
    if target.exists() and not force:
        raise UserError(
            f"{target} is not written", "the file is there already", "Give another name or --force"
        )
    write_file(target, to_toml(config, commented=True))
    click.echo(f"{target}: edit it, then run  fym train CLIP --config {target}")


def clear_run(run_dir: Path) -> None:
    """Removes the files of a former run, and no others, from its directory."""
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(run_dir / name, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    debug = os.environ.get("FYM_DEBUG", "") not in ("", "0")
    if not debug:  # the libraries' own remarks are for developers
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    try:
        _processes()
        code = cli.main(args=arguments, prog_name="fym", standalone_mode=False)
        if _processes() > 1:
            from fym.ranks import leave

            leave()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if _speaks():
            error.show()
        return UserError.exit_code
    except UserError as error:
        if debug:
            traceback.print_exc()
        _say(f"fym: {error}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("fym: stopped")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            advice = "Set FYM_DEBUG=1 and run it again to see where"
            _say(f"fym: an internal error, {type(error).__name__}: {error}. {advice}.")
        return 1


def _processes() -> int:
    """How many processes a launcher has started; they are joined by the first call. torch, which takes
    seconds, is imported only where there is a launcher."""
    if "WORLD_SIZE" not in os.environ:
        return 1
    from fym.ranks import launched

    return launched().size


def _speaks() -> bool:
    if "WORLD_SIZE" not in os.environ:
        return True
    from fym.ranks import speaks

    return speaks()


def _say(text: str) -> None:
    """Why the command ends, on the standard error; once, also where several processes end."""
    if _speaks():
        click.echo(text, err=True)


if __name__ == "__main__":
    sys.exit(main())
