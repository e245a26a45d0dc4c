"""How far a preparation has come, and what is left: time and disk space, estimated by the share of bytes read."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation has come, as given to the `progress` callback."""

    stage: str  # "tokenizer" (it is read for), "training" (of the tokenizer), "duplicates" or "store"
    bytes_done: int  # of the corpus files, compressed
    bytes_total: int | None  # None where an input is a pipe
    documents: int
    tokens: int  # 0 but in the stage "store"
    bytes_out_estimate: int | None = None  # of the store when it is complete; in the stage "store"
    seconds_left_estimate: float | None = None  # of this stage


class Meter:
    """Tells a caller how far a preparation is: `begin` a stage, then `show` again and again.

    Estimates take the rest of the corpus to be as what was read so far. There are none where the total is not known.
    `notice` is told once when the disk is too small for what is estimated.
    """

    def __init__(
        self, progress: Callable[[PrepareProgress], None] | None, notice: Callable[[str], None], bytes_total: int | None
    ):
        self.progress, self.notice, self.bytes_total = progress, notice, bytes_total
        self.warned = False
        self.begin("store")

    def begin(self, stage: str, bytes_before: int = 0) -> None:
        """`bytes_before` were read by a preparation that was interrupted."""
        self.stage, self.bytes_before, self.started = stage, bytes_before, time.perf_counter()

    def show(self, bytes_done: int, documents: int, tokens: int = 0, bytes_out: int | None = None) -> None:
        """`bytes_out`: size of the store so far."""
        total, size, seconds = self.bytes_total, None, None
        if total and bytes_out is not None and bytes_done:
            size = bytes_out * total // bytes_done
        if total and bytes_done > self.bytes_before:
            rate = (time.perf_counter() - self.started) / (bytes_done - self.bytes_before)
            seconds = rate * (total - bytes_done)
        if self.progress is not None:
            self.progress(PrepareProgress(self.stage, bytes_done, total, documents, tokens, size, seconds))

    def check_disk(self, folder: Path, bytes_done: int, bytes_out: int) -> None:
        """Warn, once, when the rest of the store is not expected to fit on the disk of `folder`."""
        if self.warned or not self.bytes_total or not bytes_done:
            return
        free = shutil.disk_usage(folder).free
        needed = bytes_out * self.bytes_total // bytes_done - bytes_out
        if needed > free:
            self.warned = True
            self.notice(
                f"the disk of {folder.parent} has {free / 1e9:.2f} GB free, and the store will need about "
                f"{needed / 1e9:.2f} GB more; free some space, or stop and choose another place"
            )
