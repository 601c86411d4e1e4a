"""The command line: it reads the options, checks what can be checked beforehand and calls the package.

Exit codes: 0 done, 1 a fault of ours, 2 a mistake the user can repair, 130 stopped with Ctrl-C, 143 with
SIGTERM. FYM_DEBUG=1 shows tracebacks. Every option that describes the work is a field of `fym.config`; its
help comes from there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fym import __version__, stopping
from fym.bench.cli import bench
from fym.cli_convert import convert
from fym.cli_fields import FieldArgument, FieldOption, read_config, with_fields
from fym.config_file import to_toml
from fym.console import Console, QuietConsole, duration
from fym.errors import UserError
from fym.files import write_file
from fym.gpus import GPUS, named
from fym.motionbench.cli import motionbench

# What a run writes into its directory, and so all that --fresh takes away.
RUN_FILES = (
    "config.toml",
    "environment.json",
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
RUN_FOLDERS = ("samples", "checkpoints", "tensorboard")


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
    metavar="[Nx]GPU",
    help=f"with --dry-run: what it would take on this GPU, or N of them  [this machine]: {', '.join(GPUS)}",
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
    from fym.advice import advising
    from fym.checkpoint import progress
    from fym.environment import deterministic
    from fym.ranks import launched

    ranks = launched()
    console = (Console if ranks.first else QuietConsole)(log_every=config.tune.log_every)
    if dry_run:
        gpu, processes = named(plan_for) if plan_for else (None, ranks.size)
        for title, rows in tune.plan(config, gpu, processes):
            console.table(title, rows)
        return
    run_dir = checks.run_directory(config)
    if fresh and ranks.first:
        clear_run(run_dir)
    ranks.wait()
    try:
        with deterministic(config.tune.deterministic), advising(config, run_dir):
            tune.train(config, run_dir, console=console)
    except KeyboardInterrupt as stop:
        if isinstance(stop.__context__, UserError):  # the run was ending with it when the signal came
            raise stop.__context__ from None
        goes_on = f"the same command goes on {progress(run_dir)}"
        raise stopping.Stopped(stopping.signal_of(stop), goes_on) from None
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
    FieldOption("generate.negative_prompt", "--negative-prompt"),
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
    family = load_family(config.model.path, **config.model.loading)
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


for more in (convert, bench, motionbench):
    cli.add_command(more)


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
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        _processes()
        with stopping.sigterm_stops():
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
    except (click.Abort, KeyboardInterrupt) as error:
        stop = error.__cause__ if isinstance(error, click.Abort) else error
        _say("fym: stopped" + (f"; {stop}" if stop and str(stop) else ""))
        return 128 + stopping.signal_of(stop)
    except Exception as error:
        if debug:
            traceback.print_exc()
        from fym.advice import explain

        known = explain(error)
        if known is not None:
            _say(f"fym: {known}")
            return known.exit_code
        if not debug:
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
