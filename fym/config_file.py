"""Reading and writing the configuration as TOML, and putting it together.

Order of precedence, weakest first: preset, file, command-line options, `--set a.b=c`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fym.config import OPTIONS, Config
from fym.errors import UserError
from fym.options import closest, flatten, get, put, show, tomllib
from fym.presets import PRESETS, resolve_preset

LARGEST_FILE = 1 << 20  # bytes; one with every option takes 10 kB


def default_config(model: str = "embedded", preset: str = "auto") -> Config:
    """The configuration of a preset with nothing else given."""
    config = Config(preset=resolve_preset(preset, model))
    config.model.path = model
    for name, value in PRESETS[config.preset].items():
        put(config, name, value)
    return config


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> Config:
    """Preset, TOML file `path`, `overrides`, `assignments`: each is stronger than the one before.

    overrides: dotted names (or nested tables) with typed values, or a list of "a.b=c" texts; assignments:
    "a.b=c" texts. Raises one UserError that lists every unknown key with the nearest valid name and every
    wrong value.
    """
    if not isinstance(overrides, Mapping):
        overrides, assignments = {}, [*overrides, *assignments]
    sections = {o.section for o in OPTIONS.values() if o.section}
    errors: list[str] = []
    given: dict[str, Any] = {}
    for source in (_read_toml(Path(path)) if path is not None else {}, dict(overrides)):
        for name, value in flatten(source, sections).items():
            _accept(given, errors, name, value, text=False)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if equals:
            _accept(given, errors, name.strip(), text.strip(), text=True)
        else:
            errors.append(f'"{assignment}" is not of the form name=value')

    config = default_config(given.get("model.path", "embedded"), given.get("preset", "auto"))
    for name, value in given.items():
        if name != "preset":
            put(config, name, value)
    errors += _conflicts(config)
    if errors:
        where = str(path) if path is not None else "the command line"
        count = "1 mistake" if len(errors) == 1 else f"{len(errors)} mistakes"
        raise UserError(
            f"{count} in the configuration",
            errors[0] if len(errors) == 1 else "\n".join(f"  - {e}" for e in errors),
            f"Correct {where}; `fym init` writes a file with every option and what it may be",
        )
    return config


def to_toml(config: Config, commented: bool = False) -> str:
    """The configuration as TOML text that `load_config` reads back to an equal one."""
    lines: list[str] = []
    if commented:
        lines += [
            "# Every option of fym. Values here are overruled by command-line options and by --set a.b=c."
        ]
    section = ""
    for name, opt in OPTIONS.items():
        if opt.section != section:
            section = opt.section
            lines += ["", f"[{section}]"]
            if commented:
                lines[-1] += f"  # {(type(get(config, section)).__doc__ or '').strip()}"
        if commented:
            allowed = (
                f" ({opt.expected()})" if opt.choices or opt.low is not None or opt.high is not None else ""
            )
            lines.append(f"# {opt.help}{allowed}")
        value = get(config, name)
        if opt.many:  # tomli_w breaks a list over several lines; a short one reads better on one
            inner = ", ".join(tomli_w.dumps({"x": entry}).strip().removeprefix("x = ") for entry in value)
            lines.append(f"{opt.leaf} = [{inner}]")
        else:
            lines.append(tomli_w.dumps({opt.leaf: value}).strip())
    return "\n".join(lines).strip() + "\n"


def _accept(given: dict[str, Any], errors: list[str], name: str, value: Any, *, text: bool) -> None:
    opt = OPTIONS.get(name)
    if opt is None:
        near = closest(name, OPTIONS)
        errors.append(f"unknown key {name}" + (f" (did you mean {near}?)" if near else ""))
        return
    try:
        given[name] = opt.convert_text(value) if text else opt.convert(value)
    except ValueError as error:
        errors.append(str(error))


def _conflicts(config: Config) -> list[str]:
    """Mistakes that only show when two options are seen together."""
    errors = []
    if config.heads.rule == "topk" and config.heads.topk == 0:
        errors.append("heads.topk = 0: rule topk needs the number of temporal heads")
    if 0 < config.clip.frames < config.temporal.sparse_frames:
        sparse = config.temporal.sparse_frames
        errors.append(f"temporal.sparse_frames = {sparse}: more than clip.frames = {config.clip.frames}")
    if config.model.shard and (config.model.quantise != "none" or config.model.offload):
        errors.append("model.shard = true: quantised or offloaded weights cannot be shared out")
    files = max(1, len(config.generate.motion))
    for name in ("temporal_scale", "spatial_scale"):
        scales = get(config, f"generate.{name}")
        if len(scales) not in (1, files):
            errors.append(
                f"generate.{name} = {show(scales)}: must be one number for all motion files or one for each, "
                f"and there {'is 1 file' if files == 1 else f'are {files} files'}"
            )
    return errors


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE >> 20} MB")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        raise UserError(f"{path} cannot be read", "there is no such file", "`fym init` writes one") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read", str(error.strerror or error), "Check the path") from None
    except (ValueError, RecursionError) as error:  # wrong syntax, too many digits, lists in lists in lists
        raise UserError(f"{path} is not a TOML file", str(error), "Correct that place in the file") from None
