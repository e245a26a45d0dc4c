"""The training loop: packs in, steps out, nothing lost on the way."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from mlm_pytorch.training.checkpoint import load_checkpoint, save_checkpoint
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.metrics import Display, MetricsFile, clock
from mlm_pytorch.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from mlm_pytorch.training.schedule import Budget, learning_rate_factor
from mlm_pytorch.training.step import Loss, StepResult, TrainingStep, native_precision

LOG_SECONDS = 1.0  # at most so often is the console touched
PLAN_AFTER = 0.02  # share of a time budget after which the number of steps is planned anew from what steps really take


class Score(Protocol):
    """A held-out result."""

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        ...

    @property
    def accuracy(self) -> float:
        """Share of predicted tokens that were right."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a run has come; saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        tokens: tokens of pieces read, padding not counted.
        seconds: time spent since the first step, over all sittings.
        total_steps: the budget in steps; for a time budget, as planned so far.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    total_steps: int = 0

    @property
    def share(self) -> float:
        """Share of the budget spent, in [0, 1]."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


class Trainer:
    """Trains a model by steps of equal size until the budget is spent.

    Args:
        model: the model, on its device.
        loss: summed loss and number of targets of what the feed's batches hold.
        feed: batches in training order.
        config: the recipe.
        folder: the run's folder, for checkpoints and metrics.
        lr: peak learning rate.
        tokens_per_epoch: tokens of the store, framing counted; turns a budget in epochs into steps.
        evaluate: measures the held-out loss of a model, or None where nothing is held out.
        keep: measures the loss on general text likewise, to see what is forgotten.
        measure_first: measure before the first step as well.
        export: writes the model in Hugging Face format into a folder.
        display: the console.

    `run` returns True when the budget is spent, False when a signal stopped it; both leave a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        feed: Feed,
        config: TrainConfig,
        folder: Path,
        *,
        lr: float,
        tokens_per_epoch: int,
        evaluate: Callable[[nn.Module], Score] | None,
        keep: Callable[[nn.Module], Score] | None = None,
        measure_first: bool = False,
        export: Callable[[Path], None],
        display: Display,
    ):
        self.model, self.feed, self.folder = model, feed, folder
        self.config = config = config.settled(**FROM_SCRATCH)
        self.evaluate, self.export, self.display, self.lr = evaluate, export, display, lr
        self.keep, self.measure_first = keep, measure_first
        self.device = next(model.parameters()).device
        self.autocast = native_precision(self.device) if config.precision == "auto" else None
        if config.precision == "bf16":
            self.autocast = torch.bfloat16
        self.optimizers = build_optimizers(model, config.optimizer or "muon", lr, config.weight_decay)
        self.step = TrainingStep(model, loss, self.optimizers, autocast=self.autocast, clip=config.clip)
        self.step.sizes.notice = display.say
        self.budget = Budget.parse(config.budget)
        steps = self.budget.steps(feed.tokens_per_step, tokens_per_epoch)
        self.progress = Progress(total_steps=steps or 0)
        self.metrics: MetricsFile | None = None  # open while running
        self._metrics_bytes = 0
        self.stop_requested: str | None = None
        self._unread: tuple[dict[str, Any], StepResult] | None = None  # a step whose line is not written yet
        self._loss = float("nan")  # of the last step that was read
        self._recent: deque[float] = deque(maxlen=100)
        self._last_evaluated = -1
        self._evaluations = 0  # how many of the planned ones are behind us
        self._saved_step = -1

    # ------------------------------------------------------------------------------------------------ state

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint whose weights the model already holds.

        Raises:
            ValueError: a checkpoint of another shape.
        """
        state, tensors = load_checkpoint(checkpoint)
        load_optimizer_tensors(self.model, self.optimizers, tensors)
        self.feed.restore(state["reader"])
        saved = Progress(**state["progress"])
        total_steps = self.progress.total_steps
        if self.budget.unit == "seconds":  # at the pace so far; the budget may be a longer one than before
            total_steps = max(saved.step, round(saved.step * self.budget.amount / saved.seconds)) if saved.step else 0
        self.progress = replace(saved, total_steps=total_steps)
        self._saved_step = saved.step
        self._metrics_bytes = state["metrics_bytes"]
        self._last_evaluated, self._evaluations = state["last_evaluated"], state["evaluations"]

    def checkpoint(self) -> None:
        """Save everything that the next sitting needs, unless this step is saved already."""
        if self._saved_step == self.progress.step:
            return
        self._write_unread()
        assert self.metrics is not None
        state = {
            "progress": vars(self.progress),
            "reader": self.feed.position.to_json(),
            "metrics_bytes": self.metrics.flush(),
            "last_evaluated": self._last_evaluated,
            "evaluations": self._evaluations,
        }
        save_checkpoint(
            self.folder,
            self.progress.step,
            export=self.export,
            optimizer=optimizer_tensors(self.model, self.optimizers),
            state=state,
            keep=self.config.keep_checkpoints,
        )
        self._saved_step = self.progress.step

    # -------------------------------------------------------------------------------------------------- step

    def _share(self, step: int) -> float:
        """Progress at a step, in [0, 1]; 0 while the number of steps is not known."""
        return min(1.0, step / self.progress.total_steps) if self.progress.total_steps else 0.0

    def take(self, batch: Batch) -> tuple[dict[str, Any], StepResult]:
        """One optimizer step; returns what is known of it at once, and what the device is still computing."""
        before = self.progress
        lr = self.lr * learning_rate_factor(
            (before.step + 1) / max(before.total_steps, 1), self.config.warmup, self.config.decay
        )
        result = self.step(batch.micro_batches, lr)
        self.feed.position = batch.position
        self.progress = replace(before, step=before.step + 1, tokens=before.tokens + result.num_tokens)
        values = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "num_targets": result.num_targets,
            "lr": lr,
            "mask_prob": self.feed.rate(before.share) / 1e6,
            "fill": round(result.num_tokens / self.feed.tokens_per_step, 4),
        }
        return values, result

    # --------------------------------------------------------------------------------------------------- run

    def _plan(self, batch: Batch) -> None:
        """Turn a time budget into a first number of steps, from a few passes whose gradients are thrown away."""
        times = []
        for _ in range(4):
            start = time.perf_counter()
            loss_sum, _ = self.step.backward(batch.micro_batches)
            float(loss_sum)  # waits for the device
            times.append(time.perf_counter() - start)
            self.step.forget_gradients()
        planned = max(1, round(self.budget.amount / (1.05 * min(times))))
        self.progress = replace(self.progress, total_steps=planned)

    def _replan(self) -> None:
        """Correct a time budget's number of steps by what steps have taken of late."""
        spent = self.progress.seconds / self.budget.amount
        if self.budget.unit != "seconds" or len(self._recent) < 10 or spent < PLAN_AFTER:
            return
        per_step = sum(self._recent) / len(self._recent)
        remaining = max(0.0, self.budget.amount - self.progress.seconds)
        total = self.progress.step + round(remaining / per_step)
        self.progress = replace(self.progress, total_steps=max(total, self.progress.step))

    def _finished(self) -> bool:
        if self.budget.unit == "seconds":  # the planned steps are a forecast; the clock decides
            return self.progress.seconds >= self.budget.amount
        return bool(self.progress.total_steps) and self.progress.step >= self.progress.total_steps

    def _request_stop(self, number: int, _: FrameType | None) -> None:
        if self.stop_requested is not None:
            raise SystemExit(128 + number)
        self.stop_requested = signal.Signals(number).name

    def run(self) -> bool:
        """Train until the budget is spent or a signal asks to stop."""
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", self._metrics_bytes)
        handlers = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if not self._finished():
                if self.measure_first and self.progress.step == 0:
                    self._evaluate()
                with closing(self.feed.batches(self.progress.step, self._share)) as batches:
                    self._loop(batches)
            self._evaluate()
            self.checkpoint()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.metrics.close()
        return self._finished()

    def _loop(self, batches: Iterator[Batch]) -> None:
        self.model.train()
        every = Budget.parse(self.config.checkpoint_every)
        saved_at, shown_at = time.monotonic(), 0.0
        saved_step = self.progress.step
        batch = next(batches)
        mark = time.monotonic()
        if not self.progress.total_steps:
            self._plan(batch)
        while True:
            values, result = self.take(batch)
            self._write_unread()  # the step before: reading it now leaves the device busy with this one
            now = time.monotonic()
            self._recent.append(now - mark)
            self.progress = replace(self.progress, seconds=self.progress.seconds + now - mark)
            values["tokens_per_second"] = round(result.num_tokens / (now - mark), 1)
            values |= {"seconds": round(self.progress.seconds, 3), "total_steps": self.progress.total_steps}
            mark = now
            self._unread = values, result
            self._replan()
            if now - shown_at >= LOG_SECONDS:
                shown_at = now
                self._show()
            if self._finished() or self.stop_requested:
                break
            if self._evaluation_due():
                self._evaluate()
            waited = now - saved_at if every.unit == "seconds" else self.progress.step - saved_step
            if waited >= every.amount:
                self.checkpoint()
                saved_at, saved_step = time.monotonic(), self.progress.step
            batch = next(batches)
        self._write_unread()
        self._show(force=True)

    def _write_unread(self) -> None:
        """Write the line of the step last taken, if it is not written yet; waits until the device has computed it."""
        if self._unread is None:
            return
        values, result = self._unread
        self._unread = None
        self._loss = result.loss
        assert self.metrics is not None
        self.metrics.write(**values, loss=self._loss, grad_norm=float(result.grad_norm))

    def _evaluation_due(self) -> bool:
        return int(self.progress.share * self.config.evaluations) > self._evaluations

    def _evaluate(self) -> None:
        if (self.evaluate is None and self.keep is None) or self._last_evaluated == self.progress.step:
            return
        self._write_unread()
        values: dict[str, Any] = {"step": self.progress.step}
        said = []
        if self.evaluate is not None:
            score = self.evaluate(self.model)
            values |= {"valid_loss": score.loss, "valid_accuracy": score.accuracy}
            said.append(f"held-out loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f}%")
        if self.keep is not None:
            values["keep_loss"] = self.keep(self.model).loss
            said.append(f"loss on the text to keep {values['keep_loss']:.3f}")
        self._last_evaluated = self.progress.step
        self._evaluations = int(self.progress.share * self.config.evaluations)
        assert self.metrics is not None
        self.metrics.write(**values)
        self.display.say(f"step {self.progress.step}: {'; '.join(said)}")

    def _show(self, *, force: bool = False) -> None:
        per_step = sum(self._recent) / len(self._recent)
        rate = self.feed.tokens_per_step / per_step
        left = (self.progress.total_steps - self.progress.step) * per_step
        if self.budget.unit == "seconds":
            left = min(left, self.budget.amount - self.progress.seconds)
        status = f"loss {self._loss:.3f}  {rate:,.0f} tokens/s  step {self.progress.step:,}  {clock(left)} left"
        self.display.show("training", self.progress.share, status, force=force)
