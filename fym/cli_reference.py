"""docs/cli.md, made from the commands and the options themselves: `python -m fym.cli_reference` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fym.cli import cli
from fym.config import OPTIONS, Config
from fym.files import write_file
from fym.options import get, show
from fym.presets import PRESETS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """# Command line

Made by `python -m fym.cli_reference` from the commands and options themselves; a test compares.

`--config FILE` reads options from a TOML file (`fym init` writes one with all of them), `--set A.B=C` sets
any [field](#fields). Weakest first: preset, file, options, `--set`.

| exit code | means |
|---|---|
| 0 | done |
| 1 | a fault of ours; `FYM_DEBUG=1` in the environment shows the traceback |
| 2 | something the user can repair: one sentence says what, why, and what to do |
| 130 | stopped with Ctrl-C or `touch RUN/stop` |
| 143 | stopped with SIGTERM |
"""


def page() -> str:
    """The whole page."""
    commands = [part for name, command in cli.commands.items() for part in _command(f"fym {name}", command)]
    return "\n".join([INTRODUCTION, *commands, *_fields(), *_presets()]).rstrip() + "\n"


def _command(name: str, command: click.Command) -> Iterator[str]:
    """A command's part of the page, and those of its own commands."""
    context = click.Context(command, info_name=name)
    usage = command.get_usage(context).partition(": ")[2]
    yield f"## {name}\n\n```\n{' '.join(usage.split())}\n```\n\n{_help(command)}\n"
    records = [option.get_help_record(context) for option in command.params]
    rows = [(f"`{record[0]}`", record[1]) for record in records if record is not None and record[1]]
    if rows:
        yield from _table(("option", ""), rows)
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from _command(f"{name} {part}", inner)


def _help(command: click.Command) -> str:
    """Its docstring with the lines of each paragraph joined."""
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _fields() -> Iterator[str]:
    yield "## Fields\n\nOf the configuration file and `--set`; those of no section stand at the file's top.\n"
    sections = dict.fromkeys(option.section for option in OPTIONS.values())
    for section in sections:
        if section:
            about = (type(get(Config(), section)).__doc__ or "").strip()
            yield f"### {section}\n\n{about}\n"
        rows = []
        for name, option in OPTIONS.items():
            if option.section == section:
                preset = any(name in values for values in PRESETS.values())
                default = "by preset" if preset else f"`{show(option.default)}`"
                rows.append((f"`{name}`", default, option.expected(), option.help))
        yield from _table(("field", "default", "may be", ""), rows)


def _presets() -> Iterator[str]:
    yield "## Presets\n\nWhat `--preset` sets; `-` is the field's own default.\n"
    fields = dict.fromkeys(name for values in PRESETS.values() for name in values)
    rows = []
    for name in fields:
        values = [f"`{show(preset[name])}`" if name in preset else "-" for preset in PRESETS.values()]
        rows.append((f"`{name}`", *values))
    yield from _table(("field", *PRESETS), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in row) + " |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page to the file that is named, or to docs/cli.md of this checkout."""
    given = sys.argv[1:] if arguments is None else arguments
    write_file(Path(given[0]) if given else PAGE, page())


if __name__ == "__main__":
    main()
