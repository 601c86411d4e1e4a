"""What a long job tells its user: a table at the start, one progress bar a stage, plain lines off a terminal.

A trainer calls five methods and needs nothing else:

    console.table("Model", [("path", "embedded"), ("layers", "6")])
    console.info("resuming at step 100 of the temporal stage")
    console.start_stage("temporal", steps=300)
    console.step("temporal", step, {"loss": 0.41, "seconds": 0.2, "rss_mib": 900.0})   # after each step
    console.end_stage()

`step` counts finished steps from 1 (a resumed stage starts higher). Every key of the row may be missing;
other keys are ignored. The first step of a stage never enters the averages: it pays for warming up.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

SMOOTHING = 0.95  # share of the past in the smoothed loss: a memory of about 20 steps
RECENT_STEPS = 50  # s/step is the median of these, so that one slow step does not move it
PLAIN_WIDTH = 110  # columns where the output is a file or a pipe


class StageMeter:
    """Running figures of one stage."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.started = time.monotonic()
        self.done = 0  # finished steps in all, those before a resume included
        self.counted = 0  # steps seen by this process
        self.peak_mib = 0.0
        self._times: deque[float] = deque(maxlen=RECENT_STEPS)
        self._loss = self._weight = 0.0

    def update(self, step: int, row: Mapping[str, object]) -> None:
        self.done = step
        self.counted += 1
        loss, seconds, rss = (_number(row.get(key)) for key in ("loss", "seconds", "rss_mib"))
        if loss is not None:
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        if seconds is not None and self.counted > 1:
            self._times.append(seconds)
        self.peak_mib = max(self.peak_mib, rss or 0.0)

    @property
    def loss(self) -> float | None:
        """Exponential mean of the loss, without the pull towards zero of the first steps."""
        return self._loss / self._weight if self._weight else None

    @property
    def seconds_per_step(self) -> float | None:
        return statistics.median(self._times) if self._times else None

    def line(self, *, remaining: bool = True) -> str:
        """Smoothed loss, s/step, peak memory and time left, as far as they are known."""
        parts = []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.seconds_per_step is not None:
            parts.append(f"{self.seconds_per_step:.3g} s/step")
        if self.peak_mib:
            parts.append(f"peak {self.peak_mib:.0f} MiB")
        if remaining and self.seconds_per_step is not None and self.steps > self.done:
            parts.append(f"{duration(self.seconds_per_step * (self.steps - self.done))} left")
        return ", ".join(parts)


class Console:
    """Progress on standard output; see the module's docstring for the calls."""

    def __init__(self, *, log_every: int = 10, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        self.log_every = log_every
        self.is_terminal = stream.isatty()
        width = None if self.is_terminal else PLAIN_WIDTH
        self._rich = RichConsole(file=stream, width=width, highlight=False, soft_wrap=not self.is_terminal)
        self._meter: StageMeter | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def info(self, text: str) -> None:
        """One line for the user."""
        self._rich.print(text, markup=False)

    def table(self, title: str, rows: Sequence[Sequence[object]]) -> None:
        """A titled table; every row has as many cells as the first, whose first column is the label."""
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        for row in rows[:1]:
            for column in range(len(row)):
                table.add_column(style="cyan" if column == 0 else None, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
        self._rich.print(table)

    def start_stage(self, name: str, steps: int) -> None:
        """Opens the bar of a stage (ends the one before, should it be open)."""
        self.end_stage()
        self._meter = StageMeter(name, steps)
        if self.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._rich,
            )
            self._task = self._progress.add_task(f"{name:<9}", total=steps, figures="")
            self._progress.start()
        else:
            self.info(f"{name}: {steps} steps")

    def step(self, stage: str, step: int, row: Mapping[str, object]) -> None:
        """After step number `step` of `stage`; row keys used: loss, seconds, rss_mib."""
        if self._meter is None or self._meter.name != stage:
            raise ValueError(f'step of stage "{stage}" outside start_stage and end_stage')
        self._meter.update(step, row)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, figures=self._meter.line())
        elif step % self.log_every == 0 or step == self._meter.steps:
            self.info(f"{stage} {step}/{self._meter.steps}  {self._meter.line()}".rstrip())

    def end_stage(self) -> None:
        """Closes the bar and leaves one line of figures; does nothing when no stage is open."""
        meter, self._meter = self._meter, None
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None
        if meter is not None:
            took = duration(time.monotonic() - meter.started)
            figures = meter.line(remaining=False)
            self.info(f"{meter.name}: {meter.counted} steps in {took}" + (f", {figures}" if figures else ""))


class QuietConsole(Console):
    """The same calls, no output (tests, library use)."""

    def info(self, text: str) -> None:
        pass

    def table(self, title: str, rows: Sequence[Sequence[object]]) -> None:
        pass

    def start_stage(self, name: str, steps: int) -> None:
        self._meter = StageMeter(name, steps)


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: object) -> float | None:
    """A finite number, or None: one broken loss value must not poison the running mean."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
