"""The report of a run: one HTML file with everything in it, readable without a network.

`write_report` makes the page of one run directory, `write_index` one page over several. A run may be
unfinished: what is not there yet is said so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fym.errors import UserError
from fym.files import write_file
from fym.report import plots, sections
from fym.report.assets import SCRIPT, STYLE
from fym.report.gallery import Gallery
from fym.report.markup import duration, escape, number, table
from fym.report.rundir import Run, read_run

TUNING = ("classify", "cache", "spatial", "temporal")


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` (and `heads.png`) into a run directory and return the page's path.

    Reads config.toml, heads.json, train.jsonl, timings.json, samples/samples.json with its clips,
    reference.mp4 and, where present, scores.json ([{"file", "name", "value", "definition"}]), whose scores
    stand beside ours. Raises UserError if the folder is not there or cannot be written.
    """
    run = read_run(_existing(run_dir))
    if run.heads is not None:
        plots.save(plots.head_map(run.heads), run.folder / "heads.png")
    path = run.folder / "report.html"
    write_file(path, document(_title(run), [_article(Gallery(run))]))
    return path


def write_index(run_dirs: Iterable[Path | str], path: Path | str, *, title: str = "Motion transfer") -> Path:
    """Write one self-contained page over several run directories. Raises what `write_report` raises."""
    runs = [read_run(_existing(folder)) for folder in run_dirs]
    galleries = [Gallery(run) for run in runs]
    header = f"<header><h1>{escape(title)}</h1>{_summary(galleries)}</header>"
    write_file(Path(path), document(title, [_article(gallery) for gallery in galleries], header))
    return Path(path)


def _summary(galleries: Sequence[Gallery]) -> str:
    """One line a run: what it learned from, mean scores with and without the motion, time."""
    names = list(dict.fromkeys(name for gallery in galleries for name in gallery.headlines))
    rows = []
    for gallery in galleries:
        run, cells = gallery.run, []
        for name in names:
            cells.append(f"{number(gallery.mean(name, 'motion'))} ({number(gallery.mean(name, 'base'))})")
        link = f'<a href="#{_anchor(run)}">{escape(_title(run))}</a>'
        figures = "".join(
            f'<td class="number">{escape(c)}</td>' for c in [*cells, duration(_tuning_seconds(run))]
        )
        rows.append(f"<tr><td>{link}</td>{figures}</tr>")
    heads = ["run", *(f"{name} (base model)" for name in names), "tuning time"]
    return table(heads, rows)


def _existing(folder: Path | str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder} is not a run directory",
            "there is no such folder",
            "Give the folder that fym train made",
        )
    return Path(folder)


def document(
    title: str, articles: Sequence[str], header: str = "", *, style: str = "", script: str = ""
) -> str:
    """A page of one file; style and script are added to those of all reports."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>{header}\n"
        + "\n".join(articles)
        + f"\n</main><script>{SCRIPT}{script}</script></body></html>\n"
    )


def _title(run: Run) -> str:
    return run.folder.resolve().name


def _anchor(run: Run) -> str:
    return "run-" + "".join(c if c.isalnum() else "-" for c in _title(run))


def _article(gallery: Gallery) -> str:
    run = gallery.run
    parts = [
        ("Clips", gallery.side_by_side()),
        ("Motion scores", gallery.score_table()),
        ("Attention heads", sections.heads(run)),
        ("Training", sections.training(run)),
        (
            "Frames of the temporal stage",
            sections.schedule(run, gallery.reference.frames if gallery.reference else 0),
        ),
        ("Time and memory", sections.costs(run)),
        ("How to reproduce", sections.reproduce(run)),
    ]
    given = run.setting("clip.prompt") or ""
    caption = given if isinstance(given, str) else "” / “".join(given)
    said = f"The reference shows: “{escape(caption)}”" if caption else "The reference has no caption."
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in [*run.notes, *gallery.notes])
    body = "".join(f"<section><h2>{name}</h2>{content}</section>\n" for name, content in parts)
    return (
        f'<article class="run" id="{_anchor(run)}"><h1>{escape(_title(run))}</h1><p class="soft">{said}</p>'
        f"{_tiles(gallery)}{notes}{body}</article>"
    )


def _tuning_seconds(run: Run) -> float:
    costs = [cost.get("seconds", math.nan) for name, cost in run.timings.items() if name in TUNING]
    return sum(costs) if costs else math.nan


def _tiles(gallery: Gallery) -> str:
    """The figures a reader looks for first."""
    run, tiles = gallery.run, []
    for name in gallery.headlines:
        tuned, base = gallery.mean(name, "motion"), gallery.mean(name, "base")
        if math.isfinite(tuned):
            without = f", {number(base)} without" if math.isfinite(base) else ""
            tiles.append((number(tuned), f"{name.replace('_', ' ')} with the motion{without}"))
    seconds = _tuning_seconds(run)
    if math.isfinite(seconds):
        tiles.append((duration(seconds), "tuning"))
    if run.heads is not None:
        tiles.append(("{} of {}".format(*run.head_counts), "heads are temporal"))
    for stage in ("spatial", "temporal"):
        wanted, done = run.setting(f"{stage}.steps", 0), run.steps_done(stage)
        if done < wanted:
            tiles.append((f"{done} of {wanted}", f"steps of the {stage} stage so far"))
    items = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{items}</div>'
