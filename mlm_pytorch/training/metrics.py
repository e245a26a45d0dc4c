"""What a run tells: lines in `metrics.jsonl`, and progress on the console."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column


class MetricsFile:
    """`metrics.jsonl`, one JSON object a line, cut back to a checkpoint's offset when a run continues from it.

    Args:
        path: the file.
        offset: what is kept of it, in bytes. Of a file that is shorter, what there is of whole lines is kept.
    """

    def __init__(self, path: Path, offset: int = 0):
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        self.missing = max(0, offset - path.stat().st_size)  # bytes that a checkpoint knows of and that are gone
        self.cut(offset if not self.missing else self._whole_lines())

    def _whole_lines(self) -> int:
        self._file.seek(0)
        return sum(len(line) for line in self._file if line.endswith(b"\n"))

    def write(self, values: dict[str, Any]) -> None:
        """Append a line. Numbers that are not finite are left out: JSON has none."""
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        self._file.write(json.dumps(finite).encode() + b"\n")

    def flush(self) -> int:
        """Let other processes see every line; returns the file's length in bytes."""
        self._file.flush()
        return self._file.tell()

    def cut(self, offset: int) -> None:
        """Forget all lines after the first `offset` bytes."""
        self._file.flush()
        self._file.truncate(offset)
        self._file.seek(offset)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that is still being written is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def clock(seconds: float) -> str:
    """Seconds as a person reads them.

    Example:
        >>> clock(75), clock(3700)
        ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class NoMetrics(MetricsFile):
    """Writes nothing: for the processes of a run beside the first."""

    missing = 0

    def __init__(self) -> None:
        pass

    def write(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> int:
        """Nothing; no bytes."""
        return 0

    def cut(self, offset: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Console(Console):
    """One that falls silent where nobody reads it any longer; rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """Progress of a run: a live line on a terminal, a plain line every ten seconds or so elsewhere.

    Corpus text never passes through here, and nothing is read as markup.
    """

    PLAIN_EVERY = 10.0

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        # Notebooks set FORCE_COLOR, by which rich takes a pipe for a terminal; a bar would fill it with its pictures.
        terminal = None if sys.stderr.isatty() else False
        self.console = console or _Console(
            file=sys.stderr, highlight=False, markup=False, quiet=quiet, force_terminal=terminal
        )
        self._bar: Progress | None = None
        self._task: Any = None
        self._printed = 0.0

    def __enter__(self) -> "Display":
        if self.console.is_terminal and not self.console.quiet:
            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
            # On a narrow terminal the end of the status gives way, not the title or the bar.
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            columns.append(TextColumn("{task.fields[status]}", markup=False, table_column=rest))
            self._bar = Progress(*columns, console=self.console, transient=False, refresh_per_second=4, expand=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._while_there():
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _while_there(self) -> Iterator[None]:
        """Fall silent where the terminal has gone, or whoever read the pipe: a run must not end for that."""
        try:
            yield
        except OSError:
            self.console.quiet = True

    def show(self, title: str, share: float, status: str, *, force: bool = False) -> None:
        """Where the work stands: `share` of it done, `status` beside the bar."""
        if self._bar is not None:
            if self._task is None or self._bar.tasks[-1].description != title:
                self._task = self._bar.add_task(title, total=1.0, status=status)
            with self._while_there():
                self._bar.update(self._task, completed=share, status=status)
        elif force or time.monotonic() - self._printed >= self.PLAIN_EVERY:
            self._printed = time.monotonic()
            self.say(f"{title} {100 * share:3.0f}%  {status}")
