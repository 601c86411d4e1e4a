"""What ends work early: Ctrl-C, SIGTERM, and for a run a file named `stop` in its directory.

Between the steps of a stage each of them is a question that the loop asks, so that the step in progress ends
and a checkpoint is written. Elsewhere a signal ends the work at once, and what is whole on disk stays.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP_FILE = "stop"


class Stopped(KeyboardInterrupt):
    """Work that was asked to stop by a signal; `str()` says where it goes on, as far as that is known."""

    def __init__(self, number: int = signal.SIGINT, words: str = "") -> None:
        super().__init__(words)
        self.number = number


def signal_of(stop: BaseException | None) -> int:
    """The signal that ended the work; the exit code is 128 more, as shells count."""
    return stop.number if isinstance(stop, Stopped) else signal.SIGINT


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, with Stopped, so that nothing half-made stays behind."""
    if not _handles_signals() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def asked_between_steps(run_dir: Path | None) -> Iterator[Callable[[], int]]:
    """Gives a question to ask after each step: which signal wants the run to stop? 0 for none, SIGINT for
    the stop file, which goes when the block ends. A signal that comes a second time acts at once.
    run_dir: None where another process of the run looks for the file.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    def asked() -> int:
        if not came and run_dir is not None and (run_dir / STOP_FILE).exists():
            came.append(signal.SIGINT)
        return came[0] if came else 0

    if _handles_signals():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, note)
    try:
        yield asked
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
        if came and run_dir is not None:
            remove_stop_file(run_dir)


def remove_stop_file(run_dir: Path) -> None:
    """What was asked of an earlier go must not stop the next one."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)


def _handles_signals() -> bool:
    return threading.current_thread() is threading.main_thread()
