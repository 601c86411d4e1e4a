"""Ctrl-C, SIGTERM and the stop file: a question between steps, an end elsewhere, and the exit codes."""

from __future__ import annotations

import signal
import threading

import pytest

from fym import cli, stopping
from fym.stopping import STOP_FILE, Stopped, asked_between_steps, signal_of, sigterm_stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_question_first_and_acts_at_once_the_second_time(tmp_path, number):
    with sigterm_stops():
        before = signal.getsignal(number)
        with asked_between_steps(tmp_path) as asked:
            assert asked() == 0
            signal.raise_signal(number)
            assert asked() == number
            with pytest.raises(KeyboardInterrupt) as caught:
                signal.raise_signal(number)
        assert signal_of(caught.value) == number
        assert signal.getsignal(number) is before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_stop_file_asks_and_goes(tmp_path):
    with asked_between_steps(tmp_path) as asked:
        assert asked() == 0
        (tmp_path / STOP_FILE).touch()
        assert asked() == signal.SIGINT and asked() == signal.SIGINT
    assert not (tmp_path / STOP_FILE).exists()


def test_a_thread_heeds_the_file_and_leaves_signals_alone(tmp_path):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with sigterm_stops(), asked_between_steps(tmp_path) as asked:
            seen.append(signal.getsignal(signal.SIGINT) is before)
            (tmp_path / STOP_FILE).touch()
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, signal.SIGINT]


def test_sigterm_at_any_other_time_ends_a_command_with_its_own_code(monkeypatch, capsys):
    def work(path, text):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fym.cli.write_file", work)
    assert cli.main(["init", "/nowhere/x.toml"]) == 143
    assert "fym: stopped\n" in capsys.readouterr().err


def test_a_shell_that_ignores_sigterm_is_obeyed():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_stops():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_stop_says(monkeypatch, capsys):
    def stop(*args, **options):
        raise Stopped(signal.SIGTERM, "the same command goes on")

    monkeypatch.setattr(stopping, "sigterm_stops", stop)
    assert cli.main(["--version"]) == 143
    assert capsys.readouterr().err == "fym: stopped; the same command goes on\n"
