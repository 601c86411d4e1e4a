"""The sections with the clips: side by side, with their tracks, and scored against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from fym import tracks
from fym.errors import UserError
from fym.report import clips
from fym.report.markup import NOT_YET, escape, missing, number, row, table
from fym.report.rundir import Run, Sample

KINDS = {"motion": "tuned", "base": "base model, no adapters"}
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

    def compare(self, other: tracks.Tracks | None) -> tuple[float, float]:
        """`direction` and `speed_ratio` against the reference; nan where a clip is missing."""
        if self.reference is None or other is None:
            return math.nan, math.nan
        return tracks.direction(self.reference.tracks, other), tracks.speed_ratio(
            self.reference.tracks, other
        )

    def mean_direction(self, kind: str) -> float:
        """Mean `direction` over the clips of one kind; nan if there is none."""
        values = [
            self.compare(clip.tracks)[0] for sample, clip in self.samples if clip and sample.kind == kind
        ]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

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
        lines = [f"<b{css}>{escape(KINDS.get(sample.kind, sample.kind))}</b>"]
        same, speed = self.compare(clip.tracks if clip else None)
        if math.isfinite(same):
            lines.append(f"direction {number(same)}, speed ×{number(speed)}")
        extra = self.run.scores.get(sample.path.name, {})
        lines += [f"{escape(name.replace('_', ' '))} {number(value)}" for name, value in extra.items()]
        return "<br>".join(lines)

    def score_table(self) -> str:
        """The table of scores with its control rows and definitions."""
        if self.reference is None or self.run.reference is None or not self.samples:
            return missing("Motion scores")
        extra = list(dict.fromkeys(name for values in self.run.scores.values() for name in values))
        rows = []
        for sample, clip in self.samples:
            given = self.run.scores.get(sample.path.name, {})
            values = [
                *self.compare(clip.tracks if clip else None),
                *(given.get(name, math.nan) for name in extra),
            ]
            label = f"{KINDS.get(sample.kind, sample.kind)}: “{sample.prompt}”, seed {sample.seed}"
            rows.append(row(label, map(number, values)))
        made = self._try(clips.controls, self.run.reference) or {}
        for name, found in {"the reference itself": self.reference.tracks, **made}.items():
            values = [*self.compare(found), *[math.nan] * len(extra)]
            rows.append(row(f"control: {name}", map(number, values), "control"))
        words = (
            "<b>direction</b>: cosine of the velocities of points with the same start, −1 to 1, 1 is best; a "
            "point that stands still counts 0. "
            "It compares places, so an object of another size or place scores lower. "
            "<b>speed_ratio</b>: speed of the moving points over the reference’s, 1 is best. "
            f"Tracker: {escape(tracks.TRACKER)}."
        )
        return table(["clip", "direction", "speed_ratio", *extra], rows) + f'<p class="note">{words}</p>'


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
    attributes = f'muted autoplay loop playsinline width="{clip.width}" height="{clip.height}"'
    tiny = ' class="tiny"' if clip.tiny else ""
    return (
        f'<figure class="clip" style="width:{clip.shown_width}px">'
        f'<video {attributes}{tiny} src="{clip.plain}"></video>'
        f'<video {attributes} src="{clip.drawn}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
