import os
import signal
import subprocess
import sys

import pytest

from mlm_pytorch.training import stopping
from mlm_pytorch.training.stopping import Stopping, process_seconds


def test_the_clock_starts_with_the_process():
    code = "import time; time.sleep(0.3); from mlm_pytorch.training.stopping import process_seconds as s; print(s())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) >= 0.3  # that the module was imported later does not count
    assert process_seconds() > 0


def test_the_limit_leaves_time_for_what_must_still_be_done(monkeypatch):
    monkeypatch.setattr(stopping, "process_seconds", lambda: 900.0)
    assert Stopping(None).check(1e9) is None
    assert Stopping(1000.0).check(0.0) is None  # 50 s are kept free, 100 are left
    assert Stopping(945.0).check(0.0) == "--stop-before"
    assert Stopping(1000.0).check(70.0) == "--stop-before"  # one and a half times 70 s


def test_signals_are_remembered_and_the_second_ends(monkeypatch):
    monkeypatch.setattr(stopping, "ECHO_SECONDS", -1.0)
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(0.001) as stop:
        assert stop.check(0.0) == "--stop-before"
        os.kill(os.getpid(), signal.SIGTERM)  # a first signal, though there was a reason already
        assert stop.reason == "SIGTERM"
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGINT)
        assert end.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_echo_of_a_signal_is_no_second_one():
    """`timeout` signals the process, and at once its group as well, to which the process belongs."""
    with Stopping() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"


def test_a_closed_terminal_stops_too_unless_that_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Stopping() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
        with Stopping() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
