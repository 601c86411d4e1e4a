"""`fym bench`."""

from __future__ import annotations

from pathlib import Path

import click

from fym.errors import UserError


@click.command()
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
