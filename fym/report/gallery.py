"""The sections with the clips: side by side, with their tracks, and scored against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from fym import __version__, tracks
from fym.errors import UserError
from fym.report import clips
from fym.report.markup import NOT_YET, escape, missing, number, row, table
from fym.report.rundir import Run, Sample

KINDS = {"motion": "tuned", "base": "base model, no adapters"}
DEFINITIONS = {
    "direction": "cosine of the velocities of points with the same start, −1 to 1, 1 is best; a point that "
    "stands still counts 0. It compares places, so an object of another size or place scores lower.",
    "speed_ratio": "speed of the moving points over the reference’s, 1 is best.",
}
Made = TypeVar("Made")


class Gallery:
    """The run's clips, measured once; what cannot be read becomes a note."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.notes: list[str] = []
        self.reference = self._try(clips.measure, run.reference) if run.reference else None
        self.samples = [(sample, self._try(clips.measure, sample.path)) for sample in _newest(run.samples)]

    def _try(self, make: Callable[[Path], Made], path: Path) -> Made | None:
        try:
            return make(path)
        except (OSError, UserError, ValueError) as error:
            self.notes.append(f"{path.name} cannot be shown: {error}")
            return None

    @property
    def score_names(self) -> list[str]:
        """The scores of the table: ours against the reference, then those given in scores.json."""
        given = (name for values in self.run.scores.values() for name in values)
        return list(dict.fromkeys([*DEFINITIONS, *given]))

    @property
    def headlines(self) -> list[str]:
        """The scores worth a place at the top: those measured against a truth, and `direction`."""
        return [*(name for name in self.score_names if name not in DEFINITIONS), "direction"]

    def scores(self, sample: Sample, clip: clips.Measured | None) -> dict[str, float]:
        """All scores of one clip; nan where it has none."""
        return self._own(clip.tracks if clip else None) | self.run.scores.get(sample.path.name, {})

    def mean(self, name: str, kind: str) -> float:
        """The mean of a score over the clips of one kind; nan if there is none."""
        values = [self.scores(s, clip).get(name, math.nan) for s, clip in self.samples if s.kind == kind]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    def _own(self, other: tracks.Tracks | None) -> dict[str, float]:
        if self.reference is None or other is None:
            return dict.fromkeys(DEFINITIONS, math.nan)
        reference = self.reference.tracks
        return {
            "direction": tracks.direction(reference, other),
            "speed_ratio": tracks.speed_ratio(reference, other),
        }

    def side_by_side(self) -> str:
        """The clips side by side: the reference, then for each prompt and seed what was made."""
        if self.run.reference is None and not self.run.samples:
            return missing("The reference and the generated clips")
        groups = []
        if self.reference is not None:
            shape = f"{self.reference.frames} frames, {self.reference.width}×{self.reference.height}"
            figure = _figure(self.reference, f"<b>reference</b><br>{shape}, {self.reference.fps:g} fps")
            groups.append(_group("The clip as the model sees it", [figure]))
        pairs: dict[tuple[str, int], list[str]] = {}
        for sample, clip in self.samples:
            pairs.setdefault((sample.prompt, sample.seed), []).append(
                _figure(clip, self._caption(sample, clip))
            )
        for (prompt, seed), figures in pairs.items():
            title = f'<b>“{escape(prompt)}”</b> <span class="soft">seed {seed}</span>'
            groups.append(_group(title, figures))
        later = "" if self.run.samples else missing("Generated clips")
        words = (
            "Below each clip the same clip with its moving points tracked. The colour tells where a track "
            "starts, so equal motion looks equal."
        )
        return f'<p class="note">{words}</p>{self._player()}<div class="clips">{"".join(groups)}</div>{later}'

    def _player(self) -> str:
        lead = self.reference or next((clip for _, clip in self.samples if clip), None)
        if lead is None:
            return ""
        return (
            f'<div class="player" hidden data-fps="{lead.fps:g}" data-frames="{lead.frames}">'
            '<button type="button">Pause</button>'
            '<input type="range" min="0" step="1" value="0" aria-label="frame"><output></output></div>'
        )

    def _caption(self, sample: Sample, clip: clips.Measured | None) -> str:
        css = ' class="tuned"' if sample.kind == "motion" else ""
        scores = self.scores(sample, clip).items()
        lines = [f"{escape(name.replace('_', ' '))} {number(v)}" for name, v in scores if math.isfinite(v)]
        return "<br>".join([f"<b{css}>{escape(KINDS.get(sample.kind, sample.kind))}</b>", *lines])

    def score_table(self) -> str:
        """The table of scores with its control rows and definitions."""
        if self.reference is None or self.run.reference is None or not self.samples:
            return missing("Motion scores")
        rows = []
        for sample, clip in self.samples:
            label = f"{KINDS.get(sample.kind, sample.kind)}: “{sample.prompt}”, seed {sample.seed}"
            rows.append(self._row(label, self.scores(sample, clip)))
        itself = self._own(self.reference.tracks) | self.run.scores.get(self.run.reference.name, {})
        rows.append(self._row("control: the reference itself", itself, "control"))
        for name, found in (self._try(clips.controls, self.run.reference) or {}).items():
            rows.append(self._row(f"control: {name}", self._own(found), "control"))
        words = "".join(
            f"<b>{escape(name)}</b>: {escape(text)}<br>"
            for name, text in {**DEFINITIONS, **self.run.definitions}.items()
        )
        tracker = f"Tracker: {escape(tracks.TRACKER)}; fym {escape(__version__)}."
        return table(["clip", *self.score_names], rows) + f'<p class="note">{words}{tracker}</p>'

    def _row(self, label: str, scores: dict[str, float], css: str = "") -> str:
        return row(label, (number(scores.get(name, math.nan)) for name in self.score_names), css)


def _newest(samples: Iterable[Sample]) -> list[Sample]:
    """The newest clip of each prompt, seed and kind."""
    newest: dict[tuple[str, int, str], Sample] = {}
    for sample in samples:
        key = (sample.prompt, sample.seed, sample.kind)
        if key not in newest or sample.step >= newest[key].step:
            newest[key] = sample
    return list(newest.values())


def _group(title: str, figures: Iterable[str]) -> str:
    return f'<div class="group"><header>{title}</header><div class="pair">{"".join(figures)}</div></div>'


def _figure(clip: clips.Measured | None, caption: str) -> str:
    if clip is None:
        gap = f'<p class="missing">{NOT_YET}</p>'
        return f'<figure class="clip">{gap}<figcaption>{caption}</figcaption></figure>'
    attributes = (
        f'muted autoplay loop playsinline width="{clip.width}" height="{clip.height}" data-fps="{clip.fps:g}"'
    )
    tiny = ' class="tiny"' if clip.tiny else ""
    return (
        f'<figure class="clip" style="width:{clip.shown_width}px">'
        f'<video {attributes}{tiny} src="{clip.plain}"></video>'
        f'<video {attributes} src="{clip.drawn}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
