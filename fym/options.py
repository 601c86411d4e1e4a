"""Typed options: what a setting is called, what it may be, how a value from a file or a shell becomes it.

`fym.config` declares its dataclasses with `option(...)`; the TOML reader, the commented template, the command
line's help and its error messages all read the same declaration, so they cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Check = Callable[[Any], str | None]  # gives what is wrong with a value, or None
KIND = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting. `name` is dotted ("temporal.rank"), `kind` a scalar type, `many`: a list of them."""

    name: str
    kind: type
    many: bool
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    check: Check | None = None

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    def expected(self) -> str:
        """What a value may be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = f"a list, each entry {KIND[self.kind]}" if self.many else KIND[self.kind]
        if self.low is not None and self.high is not None:
            return f"{words} from {self.low} to {self.high}"
        if self.low is not None:
            return f"{words}, {self.low} or more"
        return words if self.high is None else f"{words}, {self.high} or less"

    def convert(self, value: Any) -> Any:
        """`value` as this option's type; ValueError says what came and what is allowed."""
        if self.many:
            if not isinstance(value, list | tuple):
                value = [value]
            result: Any = [self._scalar(entry) for entry in value]
        else:
            result = self._scalar(value)
        problem = self.check(result) if self.check else None
        if problem:
            raise ValueError(f"{self.name} = {show(value)}: {problem}")
        return result

    def convert_text(self, text: str) -> Any:
        """The same from text typed on a command line: 3, true, [0.9, 0.5], plain words without quotes."""
        value: Any = text
        if self.kind is not str or text[:1] in ("[", '"', "'"):
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except (ValueError, RecursionError):
                value = text  # a plain word or a number with a typing mistake: convert() judges it
        return self.convert(value)

    def _scalar(self, value: Any) -> Any:
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < sys.float_info.max else math.inf
        # bool is a subclass of int: true is not a whole number here.
        fits = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if fits and self.choices:
            fits = value in self.choices
        if fits and self.kind in (int, float):
            fits = abs(value) < (2**63 if self.kind is int else math.inf) and (
                self.low is None or value >= self.low
            )
            fits = fits and (self.high is None or value <= self.high)
        if not fits:
            near = closest(value, self.choices) if isinstance(value, str) and self.choices else None
            hint = f" (did you mean {near}?)" if near else ""
            raise ValueError(f"{self.name} = {show(value)}: must be {self.expected()}{hint}")
        return value


def about(
    help: str,
    *,
    choices: Iterable[str] = (),
    low: float | None = None,
    high: float | None = None,
    check: Check | None = None,
) -> dict[str, Any]:
    """The metadata of an option's dataclass field: its documentation and its limits."""
    return {"help": help, "choices": tuple(choices), "low": low, "high": high, "check": check}


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that carries its own documentation and limits (`limits` as in `about`)."""
    return dataclasses.field(default=default, metadata=about(help, **limits))


def options_of(cls: type, prefix: str = "") -> dict[str, Option]:
    """Every option of a dataclass and of those nested in it, by dotted name, in the order of declaration."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(cls)
    nested = []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            nested.append((hint, name))
            continue
        many = typing.get_origin(hint) is list
        default = field.default_factory() if callable(field.default_factory) else field.default
        kind = typing.get_args(hint)[0] if many else hint
        found[name] = Option(name, kind, many, default, **field.metadata)
    for hint, name in nested:  # sections after plain keys, as TOML wants it
        found |= options_of(typing.cast(type, hint), name + ".")
    return found


def get(config: Any, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def put(config: Any, name: str, value: Any) -> None:
    """Sets the value of a dotted name."""
    section, _, leaf = name.rpartition(".")
    setattr(get(config, section) if section else config, leaf, value)


def flatten(table: dict[str, Any], sections: set[str], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names; only known `sections` are entered: an unknown table is one key."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and name in sections:
            flat |= flatten(value, sections, name + ".")
        else:
            flat[name] = value
    return flat


def closest(name: str, names: Iterable[str]) -> str | None:
    """The valid name most like `name`: compared whole first, then by its last part alone."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if near:
        return near[0]
    leaf = name.rpartition(".")[2]
    by_initials = {
        "".join(word[0] for word in full.rpartition(".")[2].split("_")): full for full in reversed(names)
    }
    if len(leaf) > 1 and leaf in by_initials:  # "lr"
        return by_initials[leaf]
    by_leaf = {full.rpartition(".")[2]: full for full in reversed(names)}
    near = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
    if near:
        return by_leaf[near[0]]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return near[0] if near else None


def show(value: Any) -> str:
    """A value as it would stand in the TOML file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
