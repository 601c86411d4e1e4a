"""`fym motionbench run`."""

from __future__ import annotations

from pathlib import Path

import click

from fym.motionbench.cli_data import with_selection


@click.command()
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help='a method, or one with settings: "fym temporal.rank=16,temporal.steps=500"; may be given several '
    "times  [all methods]. The control rows always run",
)
@with_selection
@click.option("--case", "names", multiple=True, metavar="NAME", help="some cases only; see `list`")
@click.option(
    "--seeds", type=click.IntRange(1), default=2, show_default=True, help="clips for each prompt of a case"
)
@click.option("--model", default="embedded", show_default=True, help="as for `fym train`")
@click.option(
    "-o",
    "--output",
    "out",
    default="runs/bench",
    show_default=True,
    metavar="FOLDER",
    help="clips and motion files go here, and where processes meet",
)
@click.option(
    "--results",
    default="runs/bench/results",
    show_default=True,
    metavar="FOLDER",
    help="a file of scores for each method; enough to go on from, wherever the clips are",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="processes of one thread each"
)
@click.option(
    "--engine",
    type=click.Choice(("pool", "ray")),
    default="pool",
    show_default=True,
    help="pool: processes of this machine; ray: the cluster that RAY_ADDRESS names, or one started here",
)
def run(
    methods: tuple[str, ...],
    part: str | None,
    category: str | None,
    split: str | None,
    names: tuple[str, ...],
    seeds: int,
    model: str,
    out: str,
    results: str,
    workers: int,
    engine: str,
    folders: tuple[str, ...],
) -> int:
    """Tune on each case with each METHOD, make its clips and score them.

    Goes on where it was stopped, by whatever. Started several times with the same folders, the processes
    share the work. A case that fails is noted and tried again the next time; the exit code is then 1.
    """
    from fym.motionbench.run import run as run_bench
    from fym.motionbench.units import Options

    return run_bench(
        Options(
            Path(out),
            Path(results),
            methods,
            part,
            category,
            split,
            names,
            folders,
            seeds,
            model,
            workers,
            engine,
        )
    )
