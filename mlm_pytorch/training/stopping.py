"""When a run must stop before its budget is spent: signals, and the time limit of a scheduler."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType

_IMPORTED = time.monotonic()
SIGNALS = (signal.SIGINT, signal.SIGTERM)
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

    The first SIGINT or SIGTERM is remembered, a second one raises SystemExit(128 + n) at once.

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
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stopping":
        self._handlers = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.reason in signal.Signals.__members__:
            raise SystemExit(128 + number)
        self.reason = signal.Signals(number).name

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
