"""Progress: what is printed off a terminal, and that the figures are right."""

from __future__ import annotations

import io

import pytest

from fym.console import Console, QuietConsole, StageMeter, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(console: Console, steps: int = 20, first: int = 1) -> None:
    console.start_stage("temporal", steps)
    for step in range(first, steps + 1):
        console.step(
            "temporal", step, {"loss": 2.0, "seconds": 9.0 if step == first else 0.5, "rss_mib": 100.0 + step}
        )
    console.end_stage()


def test_one_line_every_n_steps_off_a_terminal():
    out = io.StringIO()
    run(Console(log_every=8, stream=out))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        "temporal 8/20",
        "temporal 16/20",
        "temporal 20/20",
    ]
    assert lines[1].endswith("loss 2.0000, 0.5 s/step, peak 108 MiB, 6.0 s left")
    assert lines[-1].startswith("temporal: 20 steps in") and "peak 120 MiB" in lines[-1]
    assert "\x1b" not in out.getvalue()  # no control characters in a log file


def test_bar_on_a_terminal():
    out = Terminal()
    run(Console(stream=out))
    assert "20/20" in out.getvalue() and "━" in out.getvalue()


def test_resumed_stage_counts_its_own_steps():
    out = io.StringIO()
    run(Console(log_every=5, stream=out), steps=20, first=14)
    assert "temporal 15/20" in out.getvalue() and "temporal: 7 steps in" in out.getvalue()


def test_figures():
    meter = StageMeter("spatial", 10)
    assert meter.line() == ""
    meter.update(1, {"loss": 4.0, "seconds": 30.0})
    assert meter.loss == pytest.approx(4.0) and meter.seconds_per_step is None  # the first step is warm-up
    for step in range(2, 6):
        meter.update(step, {"loss": float("nan"), "seconds": 1.0, "rss_mib": 10.0})
    meter.update(6, {"seconds": 50.0})  # one slow step does not move the median
    assert meter.loss == pytest.approx(4.0) and meter.seconds_per_step == 1.0
    assert meter.line() == "loss 4.0000, 1 s/step, peak 10 MiB, 4.0 s left"


def test_smoothed_loss_follows_and_forgets():
    meter = StageMeter("spatial", 400)
    for step in range(200):
        meter.update(step, {"loss": 1.0})
    for step in range(200, 400):
        meter.update(step, {"loss": 3.0})
    assert 2.99 < meter.loss < 3.0


def test_text_is_not_markup():
    out = io.StringIO()
    console = Console(stream=out)
    console.info("a [red]prompt[/red] [1/2] " + "x" * 200)
    console.table("Model", [("path", "[bold]x[/bold]"), ("layers", 6)])
    assert "a [red]prompt[/red] [1/2] " + "x" * 200 + "\n" in out.getvalue()
    assert "[bold]x[/bold]" in out.getvalue() and "layers" in out.getvalue()


def test_quiet_says_nothing(capsys):
    console = QuietConsole()
    run(console)
    console.info("x")
    console.table("t", [("a", "b")])
    assert capsys.readouterr().out == ""


def test_step_outside_a_stage():
    with pytest.raises(ValueError, match="outside start_stage"):
        Console(stream=io.StringIO()).step("spatial", 1, {})


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
