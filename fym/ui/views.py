"""What the page shows of a run, as markup made from its files; clips and pictures are inside it as data."""

from __future__ import annotations

from pathlib import Path

from fym.errors import UserError
from fym.report import clips, plots
from fym.report.markup import escape, missing
from fym.report.rundir import Run
from fym.ui import jobs
from fym.ui.runs import Runs, begun

Stamp = tuple[tuple[str, int, int], ...]

STYLE = """
footer { display: none !important; }
.gradio-container { max-width: 1440px !important; }
.step { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 16px !important;
  background: var(--background-fill-primary); }
.step h2 { margin: 0; font-size: 18px; }
.fym figure { margin: 0; }
.fym .clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.fym video { display: block; width: 100%; border-radius: 6px; background: #0002; }
.fym video.tiny { image-rendering: pixelated; }
.fym figcaption, .fym .soft { color: var(--body-text-color-subdued); font-size: 13px; line-height: 1.4;
  margin-top: 5px; }
.fym svg { display: block; max-width: 100%; height: auto; }
.fym svg text { font-family: inherit !important; }
.fym .missing { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: 8px; padding: 10px 14px; margin: 0; font-size: 14px; }
.fym .status { border-left: 3px solid var(--border-color-primary); padding: 4px 12px; font-size: 15px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.fym .status.running { border-color: var(--primary-500); }
.fym .status.error { border-color: #c0392b; }
"""


def stamp(*paths: Path) -> Stamp:
    """Changes when one of the files does."""
    found = []
    for path in paths:
        if path.is_file():
            facts = path.stat()
            found.append((str(path), facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def status(folder: Path) -> str:
    """What is at work, how the last job ended, and what can be done next: one box."""
    job, words = jobs.current(folder), jobs.last_words(folder)
    if job is None:
        return _status("Nothing has been started yet.")
    if job.running:
        return _status(f"{job.kind} at work\n{words}", "running")
    if words.startswith(jobs.STOPPED):
        goes_on = " Resume goes on from the last checkpoint." if job.kind == "train" and begun(folder) else ""
        return _status(f"{job.kind} stopped.{goes_on}")
    if words.startswith("fym: "):
        return _status(words.removeprefix("fym: "), "error")
    return _status(f"{job.kind} is over.\n{words.replace(str(folder), folder.name)}")


def _status(text: str, kind: str = "") -> str:
    return _page(f'<div class="status {kind}" role="status">{escape(text)}</div>')


def reference(runs: Runs, folder: Path) -> str:
    """The clip and its tracks, one beside the other."""
    path = runs.file(folder, folder / "clip.mp4") or runs.file(folder, folder / "reference.mp4")
    if path is None:
        return _page(missing("The clip"))
    return _page(_clips([_figure(path, "the clip"), _figure(path, "its tracks", drawn=True)]))


def heads(run: Run) -> str:
    """The head map and how many heads are of each kind."""
    if run.heads is None:
        return _page(missing("The head map, made by Classify heads or by tuning"))
    temporal, total = run.head_counts
    svg = plots.to_svg(plots.head_map(run.heads), "log2 of temporal over spatial attention, layers by heads")
    words = f"{temporal} of {total} heads are temporal (T) and carry the motion, the others spatial (S)."
    return _page(f'{svg}<p class="soft">{words}</p>')


def loss(run: Run) -> str:
    """The loss curves so far."""
    if not run.log:
        return _page(missing("The loss"))
    figure = plots.loss_curves(run.log, stacked=True)
    return _page(plots.to_svg(figure, "Training loss of the spatial and the temporal stage"))


def samples(runs: Runs, run: Run) -> str:
    """The clips made while tuning, the newest of each prompt and seed first."""
    figures = []
    for sample in sorted(run.samples, key=lambda sample: -sample.step):
        path = runs.file(run.folder, sample.path)
        if path is not None:
            figures.append(_figure(path, f"{sample.prompt}, step {sample.step}, seed {sample.seed}"))
    return _page(_clips(figures) if figures else missing("Samples"))


def comparison(runs: Runs, folder: Path) -> str:
    """The reference and what was generated last, side by side, each with its tracks."""
    made = [
        _figure(path, f"{job.prompt}, seed {job.seed}", drawn=True)
        for job in runs.generated(folder)
        if (path := runs.file(folder, job.path)) is not None
    ]
    if not made:
        return _page(missing("New clips, beside the reference"))
    path = runs.file(folder, folder / "reference.mp4")
    return _page(_clips([_figure(path, "reference", drawn=True), *made] if path else made))


def _clips(figures: list[str]) -> str:
    return f'<div class="clips">{"".join(figures)}</div>'


def _figure(path: Path, caption: str, *, drawn: bool = False) -> str:
    try:
        clip = clips.measure(path)
    except (OSError, UserError, ValueError) as error:
        return f'<figure class="missing">{escape(f"{path.name} cannot be shown: {error}")}</figure>'
    css = "tiny" if clip.tiny and not drawn else ""
    address = clip.drawn if drawn else clip.plain
    video = f'<video src="{address}" class="{css}" muted autoplay loop playsinline></video>'
    return f"<figure>{video}<figcaption>{escape(caption)}</figcaption></figure>"


def _page(markup: str) -> str:
    return f'<div class="fym">{markup}</div>'
