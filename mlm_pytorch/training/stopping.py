"""When a run must stop before its budget is spent: signals, and the time limit of a scheduler."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType

_IMPORTED = time.monotonic()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one where a terminal is closed
ECHO_SECONDS = 1.0  # `timeout`, and wrappers like it, send one signal to the process and another to its group
MARGIN = 1.5  # times what an evaluation, a checkpoint and a step have taken so far
LEAST_SHARE, LEAST_SECONDS = 0.05, 60.0  # of a limit is kept free, before anything was measured


def process_seconds() -> float:
    """Seconds since this process started; where the system does not tell, since this module was imported."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED


class Stopping:
    """Watches, while its `with` block runs, for reasons to stop.

    The first SIGINT, SIGTERM or SIGHUP is remembered, a second one raises SystemExit(128 + n) at once, unless it
    follows so soon that it must be the same. A SIGHUP that is ignored (`nohup`) stays ignored.

    Args:
        stop_before: seconds since the start of the process at which all must be over; None for no limit.

    Attributes:
        reason: why to stop, None as long as there is no reason.

    Example:
        >>> Stopping(stop_before=0.001).check(0.0)
        '--stop-before'
    """

    def __init__(self, stop_before: float | None = None):
        self.stop_before = stop_before
        self.reason: str | None = None
        self._heard_at = 0.0
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stopping":
        # Of SIGINT, shells ignore it for what they start in the background, where `kill -INT` is still meant.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
        self._handlers = {number: signal.signal(number, self._heard) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.reason not in signal.Signals.__members__:
            self.reason, self._heard_at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._heard_at > ECHO_SECONDS:
            raise SystemExit(128 + number)

    def check(self, needed: float) -> str | None:
        """The reason to stop, if there is one now.

        Args:
            needed: seconds that what may still have to be done before the end has taken so far: an evaluation, a
                checkpoint, a step.
        """
        if self.reason is None and self.stop_before is not None:
            reserve = max(MARGIN * needed, min(LEAST_SHARE * self.stop_before, LEAST_SECONDS))
            if process_seconds() + reserve >= self.stop_before:
                self.reason = "--stop-before"
        return self.reason
