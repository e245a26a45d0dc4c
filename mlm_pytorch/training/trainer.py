"""The training loop: packs in, steps out, nothing lost on the way."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from mlm_pytorch.data.batches import Position
from mlm_pytorch.training.averaging import WeightAverage
from mlm_pytorch.training.checkpoint import load_checkpoint, partial_folder, save_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import Agreement, World
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.metrics import Display, MetricsFile, NoMetrics, clock
from mlm_pytorch.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from mlm_pytorch.training.parallel import OPTIMIZER_FOLDER, Parallel
from mlm_pytorch.training.schedule import Budget
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
    """Trains a model, step by step, until the budget is spent.

    Args:
        model: the model, on its device.
        loss: summed loss and number of targets of what the feed's batches hold.
        feed: batches in training order.
        config: the recipe.
        folder: the run's folder, for checkpoints and metrics.
        lr: peak learning rate.
        tokens_per_epoch: tokens of the store, framing counted; turns a budget in epochs into steps.
        evaluate: measures the held-out loss of a model, or None where nothing is held out.
        export: writes a model, whole, in Hugging Face format into a folder.
        display: the console.
        world: the processes that train together, each with a trainer like this one; the first one writes.

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
        export: Callable[[nn.Module, Path], None],
        display: Display,
        world: World | None = None,
    ):
        self.model, self.feed, self.config, self.folder = model, feed, config, folder
        self.evaluate, self.export, self.display, self.lr = evaluate, export, display, lr
        self.device = next(model.parameters()).device
        self.autocast = native_precision(self.device) if config.precision == "auto" else None
        if config.precision == "bf16":
            self.autocast = torch.bfloat16
        self.world = world or World()
        self.parallel = Parallel(model, config.parallel, self.world, shard_ranks=config.shard_ranks)
        self.optimizers = build_optimizers(
            model,
            config.optimizer,
            lr,
            config.weight_decay,
            embedding_lr=config.embedding_lr,
            orthogonalize=self.parallel.orthogonalize,
        )
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.step = TrainingStep(self.parallel, loss, self.optimizers, autocast=self.autocast, clip=config.clip)
        self.budget = Budget.parse(config.budget)
        self.ramp = config.batch_ramp
        steps = self.budget.steps(feed.reader.capacity, tokens_per_epoch, self.ramp)
        self.progress = Progress(total_steps=steps or 0)
        self.metrics: MetricsFile | None = None  # open while running
        self._metrics_bytes = 0
        self.stop_requested: str | None = None
        self._began = time.monotonic()  # when the run would have begun in one sitting
        self._unread: tuple[dict[str, Any], StepResult] | None = None  # a step whose line is not written yet
        self._loss = float("nan")  # of the last step that was read
        self._recent: deque[tuple[float, int]] = deque(maxlen=100)  # seconds and packs of the latest steps
        self._last_evaluated = -1
        self._evaluations = 0  # how many of the planned ones are behind us
        self._saved_step = -1

    # ------------------------------------------------------------------------------------------------ state

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint whose weights the model already holds.

        Raises:
            ValueError: a checkpoint of another shape.
        """
        state, tensors = load_checkpoint(checkpoint, self.model)
        if self.average is not None:
            tensors = self.average.load(tensors)
        load_optimizer_tensors(self.model, self.optimizers, tensors)
        self.feed.restore(state["reader"])
        saved = Progress(**state["progress"])
        total_steps = self.progress.total_steps
        if self.budget.unit == "seconds" and saved.step:  # at the pace so far; the budget may be a longer one
            packs = self.feed.position.next_pack
            total_steps = self.ramp.total_steps(packs * (self.budget.amount / saved.seconds - 1), saved.step)
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
            "reader": Position.merge(self.world.gather(self.feed.position)).to_json(),
            "metrics_bytes": self.metrics.flush(),
            "last_evaluated": self._last_evaluated,
            "evaluations": self._evaluations,
        }
        optimizer = optimizer_tensors(self.model, self.optimizers)
        if self.average is not None:
            optimizer |= self.average.tensors()
        with self.averaged():
            whole_model = self.parallel.whole_model()

            def write_parts(folder: Path) -> None:
                self.parallel.save_optimizer(optimizer, folder)

            def export(path: Path) -> None:
                assert whole_model is not None
                self.export(whole_model, path)

            def save() -> Path:
                return save_checkpoint(
                    self.folder,
                    self.progress.step,
                    export=export,
                    optimizer=optimizer,
                    state=state,
                    keep=self.config.keep,
                    write_parts=write_parts if self.parallel.sharded else None,
                )

            if self.parallel.sharded and not self.world.is_main:  # meets the first process in the midst of `save`
                write_parts(partial_folder(self.folder, self.progress.step) / OPTIMIZER_FOLDER)
            self.world.from_main(save)
        self._saved_step = self.progress.step

    def averaged(self) -> AbstractContextManager[None]:
        """Within this context the model holds what is exported: the mean of its weights where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    # -------------------------------------------------------------------------------------------------- step

    def _share(self, step: int) -> float:
        """Progress at a step, in [0, 1]; 0 while the number of steps is not known."""
        return min(1.0, step / self.progress.total_steps) if self.progress.total_steps else 0.0

    def take(self, batch: Batch) -> tuple[dict[str, Any], StepResult]:
        """One optimizer step; returns what is known of it at once, and what the device is still computing."""
        before = self.progress
        lr = self.lr * self.config.learning_rate_factor(self._share(before.step + 1))
        self._agreement = self._agree(batch)
        result = self.step(batch.micro_batches, lr, self._agreement)
        if self.average is not None:
            self.average.update()
        packs = batch.position.next_pack - self.feed.position.next_pack
        self.feed.position = batch.position
        self.progress = replace(before, step=before.step + 1, tokens=before.tokens + result.num_tokens)
        values = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "num_targets": result.num_targets,
            "lr": lr,
            "mask_prob": self.feed.rate(before.share) / 1e6,
            "fill": round(result.num_tokens / (self.feed.reader.capacity * packs), 4),
        }
        return values, result

    def _agree(self, batch: Batch) -> Agreement:
        return self.world.agree(
            sum(one.num_targets for one in batch.micro_batches),
            sum(one.num_tokens for one in batch.micro_batches),
            stop=lambda: self.stop_requested is not None,
            seconds=lambda: time.monotonic() - self._began,
        )

    # --------------------------------------------------------------------------------------------------- run

    def _plan(self, batch: Batch) -> None:
        """Turn a time budget into a first number of steps, from a few passes whose gradients are thrown away."""
        times = []
        for _ in range(4):
            start = time.perf_counter()
            loss_sum, _ = self.step.backward(batch.micro_batches, self._agree(batch))
            float(loss_sum)  # waits for the device
            times.append(time.perf_counter() - start)
            self.step.forget_gradients()
        packs = batch.position.next_pack - self.feed.position.next_pack
        fastest = self.world.gather(min(times))[0]
        planned = self.ramp.total_steps(packs * self.budget.amount / (1.05 * fastest))
        self.progress = replace(self.progress, total_steps=planned)

    def _replan(self) -> None:
        """Correct a time budget's number of steps by what steps have taken of late."""
        spent = self.progress.seconds / self.budget.amount
        if self.budget.unit != "seconds" or len(self._recent) < 10 or spent < PLAN_AFTER:
            return
        remaining = max(0.0, self.budget.amount - self.progress.seconds)
        total = self.ramp.total_steps(remaining / self._seconds_per_pack(), self.progress.step)
        self.progress = replace(self.progress, total_steps=total)

    def _seconds_per_pack(self) -> float:
        return sum(seconds for seconds, _ in self._recent) / sum(packs for _, packs in self._recent)

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
        file = self.folder / "metrics.jsonl"
        self.metrics = MetricsFile(file, self._metrics_bytes) if self.world.is_main else NoMetrics()
        handlers = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.world.watch():
                if not self._finished():
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
        saved, shown_at, began = self.progress, 0.0, False
        batch = next(batches)
        mark = time.monotonic()
        self._began = mark - self.progress.seconds
        if not self.progress.total_steps:
            self._plan(batch)
        while True:
            packs_before = self.feed.position.next_pack
            values, result = self.take(batch)
            self._write_unread()  # the step before: reading it now leaves the device busy with this one
            now = time.monotonic()
            seconds = self._agreement.seconds  # by one clock for all, since decisions follow from it
            if self.world.size == 1 or began:  # among others it is the time of the step before
                self._recent.append((seconds - self.progress.seconds, self.feed.position.next_pack - packs_before))
            self.progress, began = replace(self.progress, seconds=seconds), True
            values["tokens_per_second"] = round(result.num_tokens / (now - mark), 1)
            values |= {"seconds": round(self.progress.seconds, 3), "total_steps": self.progress.total_steps}
            mark = now
            self._unread = values, result
            self._replan()
            if now - shown_at >= LOG_SECONDS:
                shown_at = now
                self._show()
            if self._agreement.stop and not self.stop_requested:
                self.stop_requested = "a signal to another process"
            if self._finished() or self._agreement.stop:
                break
            if self.evaluate is not None and self._evaluation_due():
                self._evaluate()
            waited = getattr(self.progress, "seconds" if every.unit == "seconds" else "step")
            waited -= getattr(saved, "seconds" if every.unit == "seconds" else "step")
            if waited >= every.amount:
                self.checkpoint()
                saved = self.progress
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
        self.metrics.write(
            **values, loss=self._loss, accuracy=round(result.accuracy, 5), grad_norm=float(result.grad_norm)
        )

    def _evaluation_due(self) -> bool:
        return int(self.progress.share * self.config.evaluations) > self._evaluations

    def _evaluate(self) -> None:
        if self.evaluate is None or self._last_evaluated == self.progress.step:
            return
        self._write_unread()
        score = self.evaluate(self.model)  # by all processes alike: with parts of the model none could do it alone
        self.parallel.reshard()
        values = {"step": self.progress.step, "valid_loss": score.loss, "valid_accuracy": score.accuracy}
        said = f"step {self.progress.step}: held-out loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f}%"
        if self.average is not None:
            with self.averaged():
                values["ema_valid_loss"] = self.evaluate(self.model).loss
                self.parallel.reshard()
            said += f"; averaged weights {values['ema_valid_loss']:.3f}"
        self._last_evaluated = self.progress.step
        self._evaluations = int(self.progress.share * self.config.evaluations)
        assert self.metrics is not None
        self.metrics.write(**values)
        self.display.say(said)

    def _show(self, *, force: bool = False) -> None:
        if not self._recent:
            return
        per_pack = self._seconds_per_pack()
        rate = self.feed.reader.capacity / per_pack
        left = self.ramp.packs(self.progress.total_steps, self.progress.step) * per_pack
        if self.budget.unit == "seconds":
            left = min(left, self.budget.amount - self.progress.seconds)
        status = f"loss {self._loss:.3f}  {rate:,.0f} tokens/s  step {self.progress.step:,}  {clock(left)} left"
        self.display.show("training", self.progress.share, status, force=force)
