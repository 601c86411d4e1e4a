"""`fym motionbench list` and `render`: the data set itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from fym.motionbench.categories import CATEGORIES, PARTS, SPLITS, UNSORTED


def with_selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose cases."""
    for option in reversed(
        (
            click.option("--part", type=click.Choice(PARTS), help="of the data set  [both]"),
            click.option("--category", type=click.Choice((*CATEGORIES, UNSORTED)), help="[all]"),
            click.option("--split", type=click.Choice(SPLITS), help="[both]"),
            click.option(
                "--real",
                "folders",
                multiple=True,
                metavar="FOLDER",
                help="more real clips: a manifest.json, or a folder as of DAVIS or MTBench",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("list")
@with_selection
@click.option("--json", "as_json", is_flag=True, help="all but the frames, for programs")
def list_cases(as_json: bool, folders: tuple[str, ...], **chosen: Any) -> None:
    """Print the cases of the data set."""
    from fym.motionbench.hashes import known_hashes
    from fym.motionbench.suite import DATASET, VERSION, select

    found = select(folders, **chosen)
    if as_json:
        hashes = known_hashes()
        rows = [{**case.as_dict(), "sha256": hashes.get(case.name)} for case in found]
        record = {"dataset": DATASET, "version": VERSION, "cases": rows}
        click.echo(json.dumps(record, indent=1))
        return
    click.echo(f"{DATASET} {VERSION}: {len(found)} cases")
    width = max((len(case.name) for case in found), default=0)
    for (part, category), group in groupby(found, lambda case: (case.part, case.category)):
        members = list(group)
        click.echo(f"\n{category}, {part} ({len(members)})")
        for case in members:
            prompts = f"{len(case.targets)} prompts" if case.targets else "no prompts"
            click.echo(f"  {case.name:{width}}  {case.split:11}  {prompts:10}  {case.prompt}")


@click.command()
@click.argument("names", metavar="[CASE]...", nargs=-1)
@with_selection
@click.option("-o", "--output", required=True, metavar="FOLDER", help="gets a folder for each case")
@click.option("--size", type=click.IntRange(8), help="of the square, pixels  [48; real clips: as they are]")
def render(
    names: tuple[str, ...], output: str, size: int | None, folders: tuple[str, ...], **chosen: Any
) -> None:
    """Write the clips of each CASE (all of them if none is named), their true motion and their prompts.

    clip.mp4, truth.npz (rendered cases: tracks, masks, camera) and case.json. Run again, it goes on where it
    was stopped.
    """
    from fym.files import check_writable
    from fym.motionbench.render import render_cases
    from fym.motionbench.suite import select

    found = select(folders, names=names, **chosen)
    check_writable(Path(output))
    for case, kept in render_cases(found, Path(output), size=size or 0):
        click.echo(f"{case.name}: {'there already' if kept else Path(output) / case.file_name}")
