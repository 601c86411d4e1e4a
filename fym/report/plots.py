"""The reports' pictures, drawn with matplotlib.

Of a run its head map, loss curves, frame schedule, time and memory; of a benchmark the differences of its
methods and their quality against time.

Every function returns a Figure; `to_svg` turns it into markup for a page (its ink takes the page's text
colour, so it reads in light and dark), `save` writes a picture file. Shapes: L layers, H heads.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fym.files import write_file

if TYPE_CHECKING:
    from fym.heads import HeadMap

INK = "#20262e"
SPATIAL = "#3f7fbf"
TEMPORAL = "#dd7a2b"
MIDDLE = "#f3f1ec"
STAGES = ("classify", "cache", "spatial", "temporal", "sample")

_RHO = LinearSegmentedColormap.from_list("rho", ["#23558c", SPATIAL, MIDDLE, TEMPORAL, "#9c4a0c"])
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fym",
}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def head_map(heads: HeadMap) -> Figure:
    """Layers x heads, coloured by log2 rho (temporal over spatial mass); T, S: the kind, *: it flips."""
    with matplotlib.rc_context(_STYLE):
        rho = np.asarray(heads.rho, float)
        kind, flips = np.asarray(heads.kind), np.asarray(heads.flips)
        layers, count = rho.shape
        log = np.log2(np.clip(rho, 1e-6, 1e6))
        limit = max(0.5, float(np.abs(log).max()))
        figure = _figure(max(3.6, min(9.0, 0.42 * count + 1.6)), max(2.2, min(12.0, 0.36 * layers + 0.9)))
        axes = figure.subplots()
        image = axes.imshow(log, cmap=_RHO, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        letters = count <= 16
        for layer, head in np.ndindex(layers, count):
            name = "T" if kind[layer, head] == 1 else "S"
            text = name + ("*" if flips[layer, head] else "") if letters else ("·" if name == "T" else "")
            # Cells keep their colours in the dark theme, so this text must not follow the page's ink.
            shade = "#ffffff" if abs(log[layer, head]) > 0.6 * limit else "#1f252c"
            axes.text(head, layer, text, ha="center", va="center", fontsize=9, color=shade)
        axes.set(xlabel="head", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
        bar.set_label("log₂ ρ")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential moving average over about `span` values, without the pull towards 0 at the start."""
    keep, total, weight, out = 1 - 1 / max(1.0, span), 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight if weight else math.nan)
    return out


def loss_curves(rows: Iterable[Mapping[str, Any]], *, stacked: bool = False) -> Figure:
    """One panel a training stage from the rows of train.jsonl: each step thin, the smoothed curves on top.

    stacked: one below the other, for a narrow column.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row["stage"]), []).append(row)
    with matplotlib.rc_context(_STYLE):
        count = max(1, len(stages))
        figure = _figure(4.4, 2.1 * count) if stacked else _figure(9.0, 2.9)
        shape = (count, 1) if stacked else (1, count)
        panels = figure.subplots(*shape, squeeze=False).ravel()
        for axes, (stage, log) in zip(panels, stages.items(), strict=False):
            colour = TEMPORAL if stage == "temporal" else SPATIAL
            steps = [int(row["step"]) for row in log]
            _curve(axes, steps, log, "loss", "loss" if stage == "spatial" else "total", colour, raw=True)
            if stage == "temporal":
                _curve(axes, steps, log, "loss_flow", "flow matching", "#7d8794", dashes=(4, 2))
                _curve(axes, steps, log, "loss_motion", "motion", "#a35a8f", dashes=(1, 1.5))
                axes.legend(loc="upper right", fontsize=9, labelcolor=INK)
            axes.set(xlabel="step", ylabel="loss")
            axes.set_title(stage, loc="left", fontsize=11, color=INK)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return figure


def _curve(
    axes: Axes,
    steps: Sequence[int],
    log: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    colour: str,
    *,
    raw: bool = False,
    dashes: tuple[float, float] | None = None,
) -> None:
    values = [float(row[key]) if row.get(key) is not None else math.nan for row in log]
    if not any(math.isfinite(v) for v in values):
        return
    if raw:
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.7)
    style: dict[str, Any] = {"dashes": dashes} if dashes else {}
    axes.plot(steps, smooth(values, len(values) / 20), color=colour, linewidth=1.7, label=label, **style)


def frame_schedule(num_frames: int, picked: Sequence[int], positions: Sequence[float]) -> Figure:
    """Which frames the temporal stage sees, and where their latent frames sit on the time axis.

    num_frames: pixel frames of the clip. picked: the sparse frames' numbers. positions: the time position of
    each latent frame of the sparse clip, in latent frames of the full clip.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(9.0, 2.1)
        axes = figure.subplots()
        lanes = ["full clip: frames", "its latent frames", "frames picked", "their latent frames"]
        latents = np.arange(1 + (num_frames - 1) // 4)
        axes.hlines(range(4), 0, num_frames - 1, color=INK, alpha=0.15, linewidth=0.8)
        axes.plot(range(num_frames), np.full(num_frames, 3), "|", color=INK, alpha=0.55, markersize=7)
        axes.plot(latents * 4, np.full(len(latents), 2), "o", color=INK, alpha=0.55, markersize=5)
        axes.plot(picked, np.full(len(picked), 1), "|", color=TEMPORAL, markersize=11, markeredgewidth=2)
        axes.plot(np.asarray(positions) * 4, np.zeros(len(positions)), "o", color=TEMPORAL, markersize=7)
        for place in positions:
            axes.annotate(
                f"{place:.3g}",
                (float(place) * 4, 0),
                (0, -9),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
            )
        axes.set(ylim=(-0.75, 3.4), xlim=(-1, num_frames), xlabel="frame of the clip")
        axes.set_yticks(range(4), lanes[::-1])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    return figure


def stage_costs(timings: Mapping[str, Mapping[str, float]]) -> Figure:
    """Seconds and peak memory of each stage of timings.json, in the order the run goes through them."""
    names = [name for name in STAGES if name in timings] + [name for name in timings if name not in STAGES]
    with matplotlib.rc_context(_STYLE):
        figure = _figure(9.0, 0.6 + 0.34 * max(2, len(names)))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, key, unit in zip(panels, ("seconds", "peak_rss_mib"), ("s", "MiB"), strict=True):
            values = [float(timings[name].get(key, 0.0)) for name in names]
            colours = [{"spatial": SPATIAL, "temporal": TEMPORAL}.get(name, "#8a939e") for name in names]
            bars = axes.barh(names, values, color=colours, height=0.62)
            axes.bar_label(
                bars, [f"{v:,.3g} {unit}" if v < 100 else f"{v:,.0f} {unit}" for v in values], padding=4
            )
            axes.set_title("time" if unit == "s" else "peak memory of the process", loc="left", fontsize=11)
            axes.set_xlim(0, 1.22 * max([*values, 1e-9]))
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(axis="both", length=0, labelbottom=False)
        panels[0].invert_yaxis()
    return figure


def differences(panels: Mapping[str, Sequence[tuple[str, float, float, float]]], *, against: str) -> Figure:
    """Paired differences to one method with their intervals, a panel for each score of which more is better.

    panels: score -> (method, mean, low, high), the same methods in the same order. An interval that holds 0
    is drawn grey.
    """
    methods = [row[0] for row in next(iter(panels.values()))]
    with matplotlib.rc_context(_STYLE):
        figure = _figure(9.0, 0.9 + 0.27 * len(methods))
        for axes, (score, rows) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
            for place, (_, mean, low, high) in enumerate(rows):
                if not math.isfinite(mean):
                    continue
                colour = "#8a939e" if low <= 0 <= high else SPATIAL if mean < 0 else TEMPORAL
                axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
                axes.plot([mean], [place], "o", color=colour, markersize=5)
            axes.set_title(score, loc="left", fontsize=11)
            axes.set_xlabel(f"minus {against}")
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
            axes.spines["left"].set_visible(False)
    return figure


def quality_against_time(
    points: Sequence[tuple[str, float, float, float, float]], *, quality: str, time: str, marked: str
) -> Figure:
    """A point for each (method, time, mean, low, high), named at the right; `marked` is the one of ours."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(9.0, 3.9)
        axes = figure.subplots()
        for method, seconds, mean, low, high in points:
            colour = TEMPORAL if method == marked else SPATIAL
            axes.plot([seconds, seconds], [low, high], color=colour, alpha=0.45, linewidth=1.6)
            axes.plot([seconds], [mean], "o", color=colour, markersize=8 if method == marked else 6)
        axes.set(xlabel=time, ylabel=quality)
        last = max((point[1] for point in points), default=0.0)
        axes.set_xlim(-0.03 * max(last, 1.0), 1.04 * max(last, 1.0))
        axes.grid(color=INK, alpha=0.1, linewidth=0.6)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top)
        ordered = sorted(points, key=lambda point: point[2])
        places = _apart([point[2] for point in ordered], 0.062 * (top - bottom))
        for (method, seconds, mean, *_), place in zip(ordered, places, strict=True):
            axes.annotate(
                method,
                (seconds, mean),
                xytext=(1.02, (place - bottom) / (top - bottom)),
                textcoords="axes fraction",
                va="center",
                fontsize=9.5,
                fontweight="bold" if method == marked else "normal",
                arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.25, "linewidth": 0.6, "shrinkB": 4},
            )
    return figure


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as it takes to keep `gap` between neighbours."""
    found = np.array(places, float)
    for _ in range(20 * len(found) ** 2):
        overlap = gap - np.diff(found)
        if not (overlap > 1e-9 * gap).any():
            break
        push = np.maximum(overlap, 0) / 2
        found[:-1] -= push
        found[1:] += push
    return [float(place) for place in found]


def to_svg(figure: Figure, description: str) -> str:
    """The figure as <svg> markup whose ink is the page's; description: plain text for who cannot see it."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def save(figure: Figure, path: Path | str) -> Path:
    """Write the figure as the picture that the file's ending names (.png, .svg, .pdf)."""
    target, picture = Path(path), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(picture, format=target.suffix[1:], dpi=150, facecolor="white")
    write_file(target, picture.getvalue())
    return target
