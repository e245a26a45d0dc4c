"""What a run tells of each step: a line of metrics, points of the trackers' curves, the state on the console."""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mlm_pytorch.training.checkpoint import METRICS
from mlm_pytorch.training.metrics import Display, MetricsFile, NoMetrics, clock
from mlm_pytorch.training.throughput import Cost
from mlm_pytorch.training.trackers import Tracker

LOG_SECONDS = 1.0  # at most so often is the console touched, and a point drawn
RECENT = 100  # steps over which the speed is taken
# A step that takes so many times as long as others do was held up, by an evaluation, say; not before so many were seen,
# and not where as many in a row take that long: that is a new pace.
HELD_UP, STEPS_SEEN = 3.0, 10
_ON_TRACKERS = ("loss", "accuracy", "lr", "mask_prob", "grad_norm", "fill", "tokens_per_second", "peak_share")
_ON_TRACKERS += ("memory_bytes", "skipped_steps", "tokens")


@dataclass(frozen=True)
class Watch:
    """What is looked after besides the loss; all of it optional.

    Attributes:
        trackers: where curves are drawn.
        cost: operations of a token; with `peak`, the share of the device's peak is told.
        peak: operations a second that the device of one process does at most.
        processes: that share a step.
        unigram_entropy: of the training tokens, in nats; a loss that stays there is named as such.
        after_evaluation: called after each evaluation, and when the run is stopped, while the model holds what would be
            exported. What goes wrong there is said, and training goes on.
    """

    trackers: Sequence[Tracker] = ()
    cost: Cost | None = None
    peak: float | None = None
    processes: int = 1
    unigram_entropy: float | None = None
    after_evaluation: Callable[[], None] | None = None


NOTHING_MORE = Watch()


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on CUDA by torch's tensors there, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Reporter:
    """Metrics file, trackers and console of a run.

    Args:
        folder: the run's.
        display: the console.
        watch: what else is told.
        device: that the model is on.
        writes: whether this process is the one of the run that writes.
    """

    def __init__(self, folder: Path, display: Display, watch: Watch, device: torch.device, *, writes: bool = True):
        self.folder, self.display, self.watch, self.device, self.writes = folder, display, watch, device, writes
        self._metrics: MetricsFile | None = None  # open while running
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # seconds and packs of each step, pauses apart
        self._taken = self._held_up = 0.0  # seconds of this sitting, in steps and in pauses
        self._in_a_row: list[tuple[float, int, float]] = []  # steps held up one after the other: also by how much
        self._last: dict[str, Any] = {}
        self._drawn = self._shown = 0.0

    @property
    def metrics(self) -> MetricsFile:
        """The open file."""
        assert self._metrics is not None, "reported outside of open and close"
        return self._metrics

    def open(self, offset: int, step: int) -> None:
        """Begin a sitting that continues after a step, where the metrics had a length of `offset` bytes."""
        self._metrics = MetricsFile(self.folder / METRICS, offset) if self.writes else NoMetrics()
        if self._metrics.missing:
            self.display.say(f"{METRICS} lacks {self._metrics.missing:,} bytes that the checkpoint knows of")
        for tracker in self.watch.trackers:  # which an earlier sitting may have told more
            tracker.rewind(step)

    def rewind(self, offset: int, step: int) -> None:
        """Forget what was told after a step to which the run goes back."""
        self.metrics.cut(offset)
        for tracker in self.watch.trackers:
            tracker.rewind(step)

    def flush(self) -> int:
        """Bring all that was told to where it stays; returns the length of the metrics in bytes."""
        for tracker in self.watch.trackers:
            tracker.flush()
        return self.metrics.flush()

    def close(self) -> None:
        """End a sitting."""
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self.watch.trackers:
            tracker.close()

    # ------------------------------------------------------------------------------------------------- lines

    def took(self, seconds: float, packs: int) -> None:
        """Take note of a step's duration, evaluations and the like included, and of its size.

        What a pause takes is spread over the whole sitting: within the last steps alone it would pass for their pace,
        and a time budget for nearly spent.
        """
        pause = 0.0
        if len(self._recent) >= STEPS_SEEN:
            usual = packs * median(each / size for each, size in self._recent)
            pause = seconds - usual if seconds > HELD_UP * usual else 0.0
        self._held_up += pause
        self._taken += seconds - pause
        self._recent.append((seconds - pause, packs))
        self._in_a_row = [*self._in_a_row, (seconds, packs, pause)] if pause else []
        if len(self._in_a_row) == STEPS_SEEN:
            excess = sum(pause for _, _, pause in self._in_a_row)
            self._held_up, self._taken = self._held_up - excess, self._taken + excess
            self._recent.clear()
            self._recent.extend((seconds, packs) for seconds, packs, _ in self._in_a_row)
            self._in_a_row = []

    @property
    def seconds_per_pack(self) -> float | None:
        """At the pace of the last steps, with the pauses of this sitting; None before the first step."""
        packs = sum(packs for _, packs in self._recent)
        return self._with_pauses(sum(seconds for seconds, _ in self._recent) / packs) if packs else None

    @property
    def seconds_per_step(self) -> float | None:
        """Likewise."""
        steps = len(self._recent)
        return self._with_pauses(sum(seconds for seconds, _ in self._recent) / steps) if steps else None

    def _with_pauses(self, seconds: float) -> float:
        # Early in a sitting a pause tells little of how often there will be one.
        return seconds * (1 + self._held_up / max(self._taken, RECENT * seconds))

    @property
    def steps_timed(self) -> int:
        """How many steps that is over."""
        return len(self._recent)

    def step(self, values: dict[str, Any], num_tokens: int, seconds: float) -> None:
        """Tell of a step of `num_tokens` that took `seconds` by itself: its line, and once a second curves' points."""
        values["tokens_per_second"] = round(num_tokens / seconds, 1)
        if self.watch.cost is not None and self.watch.peak:
            achieved = self.watch.cost.of(num_tokens, values["num_targets"]) / seconds
            values["peak_share"] = round(achieved / (self.watch.processes * self.watch.peak), 4)
        values["memory_bytes"] = peak_memory(self.device)
        self.metrics.write(values)
        self._last = values
        now = time.monotonic()
        if now - self._drawn >= LOG_SECONDS:
            self._drawn = now
            self._draw("train", values["step"], {name: values[name] for name in _ON_TRACKERS if name in values})

    def held_out(self, values: dict[str, Any]) -> None:
        """Tell of a held-out result."""
        self.metrics.write(values)
        self._draw("valid", values["step"], {k: v for k, v in values.items() if k.startswith("valid_")})

    def evaluated(self) -> None:
        """Let whoever wants to know that an evaluation is over, or the run, do so."""
        if self.watch.after_evaluation is None:
            return
        self.metrics.flush()
        try:
            self.watch.after_evaluation()
        except Exception as error:  # noqa: BLE001 -- somebody else's code, and nothing that training depends on
            self.display.say(f"what should follow an evaluation failed: {type(error).__name__}: {error}")

    def _draw(self, group: str, step: int, values: dict[str, float]) -> None:
        for tracker in self.watch.trackers:
            tracker.log(step, {f"{group}/{name.removeprefix('valid_')}": value for name, value in values.items()})

    # ----------------------------------------------------------------------------------------------- console

    def show(self, share: float, seconds_left: float, tokens_per_pack: int, *, force: bool = False) -> None:
        """Where the run stands, at most once a second unless forced."""
        now = time.monotonic()
        if not force and now - self._shown < LOG_SECONDS:
            return
        self._shown = now
        self.metrics.flush()  # whoever follows the file sees whole lines, about as new as the console
        rate = tokens_per_pack * self._last.get("fill", 1.0) / (self.seconds_per_pack or float("inf"))
        status = f"{clock(seconds_left)} left, {described(self._last, rate)}"  # what matters most is cut last
        self.display.show("training", share, status, force=force)


def described(line: dict[str, Any], tokens_per_second: float) -> str:
    """The line of a step as a person reads it.

    Example:
        >>> described({"step": 1200, "loss": 5.1234, "accuracy": 0.213, "lr": 4e-3, "mask_prob": 0.27, "fill": 0.998,
        ...            "grad_norm": 0.83, "peak_share": 0.41, "memory_bytes": 1.3e9, "skipped_steps": 2}, 18432.0)
        'step 1,200, loss 5.123, accuracy 21.3%, 18,432 tokens/s (41% of peak), gradient 0.83, lr 4.0e-03, masked 27%, \
fill 99.8%, 1.3 GB, 2 skipped'
    """
    parts = []
    if "step" in line:
        parts = [f"step {line['step']:,}", f"loss {line.get('loss', float('nan')):.3f}"]
    if "accuracy" in line:
        parts.append(f"accuracy {line['accuracy']:.1%}")
    peak = f" ({line['peak_share']:.0%} of peak)" if "peak_share" in line else ""
    parts.append(f"{tokens_per_second:,.0f} tokens/s{peak}")
    for name, form in (("grad_norm", "gradient {:.2f}"), ("lr", "lr {:.1e}"), ("mask_prob", "masked {:.0%}")):
        if name in line:
            parts.append(form.format(line[name]))
    if "fill" in line:
        parts.append(f"fill {line['fill']:.1%}")
    if "memory_bytes" in line:
        parts.append(f"{line['memory_bytes'] / 1e9:.1f} GB")
    if line.get("skipped_steps"):
        parts.append(f"{line['skipped_steps']:,} skipped")
    return ", ".join(parts)
