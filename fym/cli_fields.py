"""Command-line options that are fields of the configuration, which describes and judges them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fym.config import OPTIONS, Config
from fym.config_file import load_config
from fym.options import KIND
from fym.presets import PRESETS

Command = TypeVar("Command", bound=Callable[..., Any])


def _default(field: str) -> str:
    """The default as the help shows it; nothing where the help explains it already ("0 = all")."""
    if any(field in values for values in PRESETS.values()):
        return "  [by preset]"
    default = OPTIONS[field].default
    shown = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"  [{shown}]" if shown and f"{shown} = " not in OPTIONS[field].help and shown != "-1.0" else ""


def _parameter(field: str) -> str:
    return field.replace(".", "__")


class FieldOption(click.Option):
    """An option that is a field of the configuration. Its value stays text: the configuration judges it."""

    def __init__(self, field: str, *flags: str, multiple: bool = False) -> None:
        declared = OPTIONS[field]
        stage = f"{declared.section} stage: " if declared.section in ("spatial", "temporal") else ""
        super().__init__(
            [*flags, _parameter(field)],
            type=str,
            multiple=multiple,
            metavar="|".join(declared.choices) or KIND[declared.kind].split()[-1].upper(),
            help=stage + declared.help + _default(field),
        )
        self.field = field


class FieldArgument(click.Argument):
    """The clips, which may also stand in the configuration file."""

    def __init__(self, field: str, metavar: str) -> None:
        super().__init__([_parameter(field)], required=False, nargs=-1, metavar=metavar)
        self.field = field


def with_fields(*params: click.Parameter) -> Callable[[Command], Command]:
    """Adds options in the order they are listed, then --config and --set."""
    common = [
        click.Option(["--config", "config_file"], metavar="FILE", help="TOML file (see `fym init`)"),
        click.Option(
            ["--set", "assignments"], multiple=True, metavar="A.B=C", help="any field of the configuration"
        ),
    ]

    def decorate(function: Command) -> Command:
        declared: list[click.Parameter] = getattr(function, "__click_params__", [])
        function.__click_params__ = [*declared, *reversed([*params, *common])]  # type: ignore[attr-defined]
        return function

    return decorate


def read_config(given: dict[str, Any]) -> Config:
    """The configuration from --config, the field options that were given, and --set."""
    values: dict[str, Any] = {}
    texts: list[str] = []
    for name, value in given.items():
        field = name.replace("__", ".")
        if field not in OPTIONS or value in (None, ()):
            continue
        if OPTIONS[field].kind is str:  # free text: nothing in it is to be read as TOML
            values[field] = list(value) if isinstance(value, tuple) else value
        else:
            texts.append(f"{field}=[{', '.join(value)}]" if isinstance(value, tuple) else f"{field}={value}")
    return load_config(given.get("config_file"), values, [*texts, *given.get("assignments", ())])
