"""`fym motionbench report`."""

from __future__ import annotations

from pathlib import Path

import click

from fym.files import write_file
from fym.motionbench.categories import SPLITS


@click.command()
@click.argument("results", metavar="RESULTS")
@click.option("--clips", metavar="FOLDER", help="that `run -o` made: some of its clips go into the page")
@click.option(
    "-o", "--output", "out", default="report.html", show_default=True, metavar="FILE", help="the page"
)
@click.option("--csv", "csv_file", metavar="FILE", help="every figure, a line each")
@click.option("--json", "json_file", metavar="FILE", help="every figure with definitions and failures")
@click.option("--latex", "latex_file", metavar="FILE", help="the headline scores, for booktabs")
@click.option("--markdown", "markdown_file", metavar="FILE", help="the headline scores")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True, help="which cases")
@click.option(
    "--against",
    default="fym",
    show_default=True,
    metavar="METHOD",
    help="the one all others are compared with",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="only these, on the cases that all of them have; may be given several times  [all methods]",
)
def report(
    results: str,
    clips: str | None,
    out: str,
    csv_file: str | None,
    json_file: str | None,
    latex_file: str | None,
    markdown_file: str | None,
    split: str,
    against: str,
    methods: tuple[str, ...],
) -> None:
    """Write a page about the folder RESULTS that `fym motionbench run` fills, and tables.

    A run that is under way can be reported on: methods are compared on the clips that both have.
    """
    from fym.motionbench.report import tables
    from fym.motionbench.report.page import page
    from fym.motionbench.report.summary import summarise

    summary = summarise(Path(results), against=against, split=split, methods=methods)
    for file, make in (
        (csv_file, tables.as_csv),
        (json_file, tables.as_json),
        (latex_file, tables.as_latex),
        (markdown_file, tables.as_markdown),
    ):
        if file:
            write_file(Path(file), make(summary))
            click.echo(file)
    write_file(Path(out), page(summary, Path(results), Path(clips) if clips else None))
    click.echo(out)
