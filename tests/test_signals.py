"""Signals are noted, delivered later as they would have been, and a second one acts at once."""

import os
import signal
import subprocess
import sys

import pytest

from fastgan.run.signals import Signals


@pytest.fixture(autouse=True)
def handlers():
    """Those of an ordinary program, however this one was started: under nohup SIGINT is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    after = {number: signal.getsignal(number) for number in usual}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == usual


def test_ctrl_c_waits_and_then_interrupts(caplog):
    with Signals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT and signals.name == "Ctrl-C"
    with pytest.raises(KeyboardInterrupt, match="saved"):
        signals.deliver("saved")
    assert "saved" in caplog.text


def test_sigterm_ends_with_the_status_a_shell_expects():
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
    assert signals.name == "SIGTERM"
    with pytest.raises(SystemExit) as caught:
        signals.deliver("saved")
    assert caught.value.code == 143


def test_the_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was only noted")
    assert signals.received == signal.SIGTERM


def test_handlers_of_the_users_own_are_called_and_ignored_signals_stay_ignored():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        signals.deliver("saved")
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


PROGRAM = """
import os, signal, sys
from fastgan.run.signals import Signals
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
with Signals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received is None, "nohup means it"
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.name == "SIGTERM"
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
signals.deliver("saved")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_program_started_with_ctrl_c_ignored_hears_sigterm_only():
    command = ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 143, result.stderr
