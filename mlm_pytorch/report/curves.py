"""`metrics.jsonl` to curves: one pass in bounded memory, spikes kept, and nothing read twice while a run goes on.

Shapes: n lines, F fields, B buckets.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BUCKETS = 512  # at least so many points a curve, where there are as many lines; at most twice as many
AXES = ("step", "tokens", "seconds")
TRAINING = (
    "loss",
    "accuracy",
    "lr",
    "mask_prob",
    "grad_norm",
    "fill",
    "tokens_per_second",
    "peak_share",
    "memory_bytes",
    "skipped_steps",
    "rollbacks",
    "total_steps",
)
HELD_OUT = ("valid_loss", "valid_accuracy", "ema_valid_loss", "ema_valid_accuracy", "keep_loss")

_BLOCK = 1 << 22  # bytes read at a time
_CHUNK = 4096  # lines parsed at a time
_LONGEST_LINE = 1 << 20  # bytes; a file without line ends is not metrics
_REMEMBERED = 64  # bytes before where reading stopped, by which the file is known again


class Buckets:
    """Lines in buckets of equal numbers, each with a count, sum, minimum and maximum per field.

    When there are `2 * BUCKETS` of them, neighbours are merged and buckets hold twice as many lines from then on. So
    memory does not grow, no minimum and no maximum is lost, and lines may come in parts of any size.

    Example:
        >>> buckets = Buckets(("step", "loss"))
        >>> buckets.add([{"step": 1, "loss": 9.0}, {"step": 2, "loss": 7.0}])
        >>> buckets.mean("loss").tolist(), buckets.width
        ([9.0, 7.0], 1)
    """

    def __init__(self, fields: Sequence[str]):
        self.fields = tuple(fields)
        shape = (2 * BUCKETS, len(self.fields))
        self.width, self.num_lines = 1, 0
        self.last: dict[str, float] = {}  # the newest finite value of each field
        self._count, self._sum, self._bad = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def __len__(self) -> int:
        return math.ceil(self.num_lines / self.width)

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Count lines in their order; a field may be absent, and what is no number is as good as absent."""
        if not lines:
            return
        columns, bad = zip(*(_column(lines, field) for field in self.fields), strict=True)
        values_nF, bad_nF = np.stack(columns, 1), np.stack(bad, 1)
        rows = np.arange(self.num_lines, self.num_lines + len(lines))
        while rows[-1] // self.width >= 2 * BUCKETS:
            self._merge()
        bucket = rows // self.width
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        span = slice(int(bucket[0]), int(bucket[-1]) + 1)
        known = np.isfinite(values_nF)
        self._count[span] += np.add.reduceat(known, starts, axis=0, dtype=np.int64)
        self._sum[span] += np.add.reduceat(np.where(known, values_nF, 0.0), starts, axis=0)
        self._bad[span] += np.add.reduceat(bad_nF, starts, axis=0, dtype=np.int64)
        low = np.minimum.reduceat(np.where(known, values_nF, np.inf), starts, axis=0)
        high = np.maximum.reduceat(np.where(known, values_nF, -np.inf), starts, axis=0)
        self._low[span] = np.minimum(self._low[span], low)
        self._high[span] = np.maximum(self._high[span], high)
        self.num_lines += len(lines)
        for index, field in enumerate(self.fields):
            where = np.flatnonzero(known[:, index])
            if len(where):
                self.last[field] = float(values_nF[where[-1], index])

    def _merge(self) -> None:
        for array, join, empty in (
            (self._count, np.add, 0.0),
            (self._sum, np.add, 0.0),
            (self._bad, np.add, 0.0),
            (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):
            array[:BUCKETS] = join(array[0::2], array[1::2])
            array[BUCKETS:] = empty
        self.width *= 2

    def has(self, field: str) -> bool:
        """Whether any line held a number there, or one that is not finite."""
        index = self.fields.index(field)
        return bool(self._count[:, index].any() or self._bad[:, index].any())

    def mean(self, field: str) -> np.ndarray:
        """(B,) mean of the finite values in each bucket; NaN where there is none."""
        index, size = self.fields.index(field), len(self)
        count = self._count[:size, index]
        return np.where(count > 0, self._sum[:size, index] / np.maximum(count, 1), np.nan)

    def low(self, field: str) -> np.ndarray:
        """(B,) smallest finite value in each bucket; NaN where there is none."""
        values = self._low[: len(self), self.fields.index(field)]
        return np.where(np.isfinite(values), values, np.nan)

    def high(self, field: str) -> np.ndarray:
        """(B,) largest finite value in each bucket; NaN where there is none."""
        values = self._high[: len(self), self.fields.index(field)]
        return np.where(np.isfinite(values), values, np.nan)

    def bad(self, field: str) -> np.ndarray:
        """(B,) how many values of each bucket are infinite or no number: a loss that diverged, say."""
        return self._bad[: len(self), self.fields.index(field)].astype(np.int64)

    def recent(self, field: str, share: float = 0.02) -> float | None:
        """Mean over the newest `share` of the lines, or of one bucket; None where no line there holds the field."""
        index, size = self.fields.index(field), len(self)
        newest = slice(size - max(1, round(share * size)), size)
        count = self._count[newest, index].sum() if size else 0
        return float(self._sum[newest, index].sum() / count) if count else None


class Curves:
    """What a run's `metrics.jsonl` tells, read as far as it goes; `update` reads on from there.

    Attributes:
        training: the lines of steps.
        held_out: the lines of evaluations; where they lack tokens and seconds, those of the step before.
        damaged: complete lines that hold no JSON object.
        best: (held-out loss, step) of the lowest one, or None; of the averaged weights where there are some, since
            these are what a run leaves.
    """

    def __init__(self, path: Path):
        self.path = path
        self._start()

    def _start(self) -> None:
        self.training, self.held_out = Buckets((*AXES, *TRAINING)), Buckets((*AXES, *HELD_OUT))
        self.damaged = 0
        self.best: tuple[float, int | None] | None = None
        self._offset, self._inside_long_line, self._before = 0, False, b""

    def update(self) -> "Curves":
        """Read the lines that are new. A last line without its end is left for the next time; no file is no lines."""
        if not self.path.is_file():
            return self
        with self.path.open("rb") as file:
            if self._read_before(file) != self._before:  # cut back to a checkpoint: what was read is no longer true
                self._start()
            file.seek(self._offset)
            for lines in self._lines(file):
                self._add(lines)
            self._before = self._read_before(file)
        return self

    def _read_before(self, file: Any) -> bytes:
        """The bytes before where reading stopped. A file that was cut back and has grown again has others there: its
        lines hold seconds, and no two steps end at the same."""
        file.seek(max(0, self._offset - _REMEMBERED))
        return file.read(min(self._offset, _REMEMBERED))

    def _lines(self, file: Any) -> Iterator[list[bytes]]:
        rest = b""
        while block := file.read(_BLOCK):
            *complete, rest = (rest + block).split(b"\n")
            if complete and self._inside_long_line:
                self._inside_long_line = False
                self._offset += len(complete.pop(0)) + 1
            self._offset += sum(map(len, complete)) + len(complete)
            if len(rest) > _LONGEST_LINE:
                self.damaged += not self._inside_long_line
                self._offset += len(rest)
                self._inside_long_line, rest = True, b""
            for start in range(0, len(complete), _CHUNK):
                yield complete[start : start + _CHUNK]

    def _add(self, lines: list[bytes]) -> None:
        objects, damaged = parsed([line for line in lines if line.strip()])
        self.damaged += damaged
        steps: list[dict[str, Any]] = []
        scores: list[dict[str, Any]] = []
        here: dict[str, Any] = {axis: self.training.last.get(axis) for axis in AXES}
        for line in objects:
            if "loss" in line:
                steps.append(line)
                here = line
            if "valid_loss" in line:
                scores.append({axis: here.get(axis) for axis in AXES} | line)
        self.training.add(steps)
        self.held_out.add(scores)
        for line in scores:
            loss, step = _number(line.get("ema_valid_loss", line["valid_loss"])), _number(line.get("step"))
            if loss is not None and math.isfinite(loss) and (self.best is None or loss < self.best[0]):
                self.best = loss, None if step is None or not math.isfinite(step) else int(step)


def parsed(lines: list[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects among lines, and how many lines hold none. All at once where all are whole: half the time."""
    try:
        objects = json.loads("[" + b",".join(lines).decode() + "]")
    except (ValueError, RecursionError):
        objects = []
    if len(objects) == len(lines) and all(isinstance(line, dict) for line in objects):
        return objects, 0
    found = []
    for line in lines:
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, len(lines) - len(found)


def _column(lines: Sequence[dict[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) values of a field, NaN where it is absent; and where it is there and not finite."""
    raw = [line.get(field) for line in lines]
    try:
        values = np.array(raw, dtype=float)
    except (ValueError, TypeError, OverflowError):
        raw = [_number(value) for value in raw]
        values = np.array(raw, dtype=float)
    if values.ndim != 1:  # a list of one length in every line
        return np.full(len(raw), np.nan), np.zeros(len(raw), dtype=bool)
    if np.isfinite(values).all():
        return values, np.zeros(len(raw), dtype=bool)
    absent = np.fromiter((value is None for value in raw), dtype=bool, count=len(raw))
    return values, ~np.isfinite(values) & ~absent


def _number(value: object) -> float | None:
    """A number as a float; None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def axis_and_values(buckets: Buckets, fields: Sequence[str]) -> dict[str, Any]:
    """What a page draws: axes, and mean, low, high (where they differ) and not-finite counts of the fields there are.

    Numbers keep five digits; None stands where a bucket has none.
    """
    drawn: dict[str, Any] = {"width": buckets.width}
    drawn |= {axis: _plain(buckets.mean(axis), 7) for axis in AXES if buckets.has(axis)}
    for field in fields:
        if not buckets.has(field):
            continue
        mean, low, high, bad = (getattr(buckets, name)(field) for name in ("mean", "low", "high", "bad"))
        drawn[field] = {"mean": _plain(mean, 5)}
        if np.nanmax(high - low, initial=0.0) > 0:
            drawn[field] |= {"low": _plain(low, 5), "high": _plain(high, 5)}
        if bad.any():
            drawn[field]["bad"] = {str(i): int(bad[i]) for i in np.flatnonzero(bad)}
    return drawn


def _plain(values: np.ndarray, digits: int) -> list[float | int | None]:
    plain: list[float | int | None] = []
    for value in values.tolist():
        if not math.isfinite(value):
            plain.append(None)
        else:
            rounded = float(f"{value:.{digits}g}")
            plain.append(int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded)
    return plain
