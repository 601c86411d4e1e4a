"""What the page shows of a run at this moment: made from its files, and only where they have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from fym.errors import UserError
from fym.report.rundir import read_run
from fym.ui import jobs, views
from fym.ui.runs import Runs, begun
from fym.ui.views import stamp

# What a component depends on, and how its new value is made.
Part = tuple[Any, Callable[[], Any]]


def changes(
    runs: Runs, parts_of: Callable[[Runs, Path | None], Mapping[str, Part]], name: str | None, before: Any
) -> list[Any]:
    """The new value, or gr.skip(), of each part, then what has now been seen: the next call's `before`."""
    try:
        folder: Path | None = runs.existing(name)
    except UserError:  # a name being typed
        folder = None
    parts = parts_of(runs, folder)
    now = {"run": str(folder), **{key: mark for key, (mark, _) in parts.items()}}
    same = before.get("run") == now["run"]
    updates = [
        gr.skip() if same and before.get(key) == mark else make() for key, (mark, make) in parts.items()
    ]
    return [*updates, now]


def controls(runs: Runs, folder: Path | None) -> dict[str, Part]:
    """The status line, then which buttons can be pressed."""
    if folder is None:
        off = _button(False)
        none = dict.fromkeys(("classify", "train", "resume", "stop", "generate", "motion", "report"), off)
        return {"status": ("", lambda: ""), **none}
    job = jobs.current(folder)
    running = job is not None and job.running
    text = views.status(folder)
    motion = runs.file(folder, folder / "motion.safetensors")
    return {
        "status": (text, lambda: text),
        "classify": _button(not running and not begun(folder)),
        "train": _button(not running),
        "resume": _button(not running and begun(folder) and motion is None),
        "stop": _button(running),
        "generate": _button(not running and motion is not None),
        "motion": _download(motion),
        "report": _download(runs.file(folder, folder / "report.html")),
    }


def pictures(runs: Runs, folder: Path | None) -> dict[str, Part]:
    """Clips and plots."""
    if folder is None:
        return dict.fromkeys(("clip", "loss", "heads", "samples", "new"), ("", lambda: ""))
    made = sorted((folder / "generated").glob("*"))
    listed = folder / "samples" / "samples.json"
    return {
        "clip": (
            stamp(folder / "clip.mp4", folder / "reference.mp4"),
            lambda: views.reference(runs, folder),
        ),
        "loss": (stamp(folder / "train.jsonl"), lambda: views.loss(read_run(folder))),
        "heads": (stamp(folder / "heads.json"), lambda: views.heads(read_run(folder))),
        "samples": (stamp(listed), lambda: views.samples(runs, read_run(folder))),
        "new": (stamp(folder / "generate.toml", *made), lambda: views.comparison(runs, folder)),
    }


def _button(on: bool) -> Part:
    return on, lambda: gr.update(interactive=on)


def _download(path: Path | None) -> Part:
    value = str(path) if path else None
    mark = stamp(path) if path else ()
    return mark, lambda: gr.update(value=value, interactive=path is not None)
