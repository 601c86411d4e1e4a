"""`fym convert`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from fym.errors import UserError


@click.command()
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
