"""The training loop: packs in, steps out, nothing lost on the way."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlm_pytorch.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    point_to,
    random_states,
    restore_random,
)
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.guards import PlateauGuard, SkipGuard
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from mlm_pytorch.training.reporting import NOTHING_MORE, Reporter, Watch
from mlm_pytorch.training.schedule import Budget, learning_rate_factor
from mlm_pytorch.training.step import Loss, StepResult, TrainingStep, native_precision
from mlm_pytorch.training.stopping import Stopping
from mlm_pytorch.training.writer import CheckpointWriter, Export

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


@dataclass(frozen=True)
class Taken:
    """A step whose line is not written yet: what is known of it, and what the device is still computing."""

    values: dict[str, Any]
    result: StepResult
    seconds: float  # by itself, without evaluations and the like


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
        export: writes weights in Hugging Face format into a folder; called in a thread of its own.
        load: reads what `export` wrote, as the model's `state_dict`.
        display: the console.
        watch: what else is told and looked after.

    `run` returns True when the budget is spent, False when a signal or a limit stopped it; both leave a checkpoint.
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
        export: Export,
        load: Callable[[Path], Mapping[str, Tensor]],
        display: Display,
        watch: Watch = NOTHING_MORE,
    ):
        self.model, self.feed, self.config, self.folder = model, feed, config, folder
        self.evaluate, self.load, self.display, self.watch, self.lr = evaluate, load, display, watch, lr
        self.device = next(model.parameters()).device
        self.autocast = native_precision(self.device) if config.precision == "auto" else None
        if config.precision == "bf16":
            self.autocast = torch.bfloat16
        self.optimizers = build_optimizers(model, config.optimizer, lr, config.weight_decay)
        self.step = TrainingStep(model, loss, self.optimizers, autocast=self.autocast, clip=config.clip)
        self.budget = Budget.parse(config.budget)
        steps = self.budget.steps(feed.tokens_per_step, tokens_per_epoch)
        self.progress = Progress(total_steps=steps or 0)
        self.reporter = Reporter(folder, display, watch, self.device)
        self.stopping = Stopping(Budget.parse(config.stop_before).amount if config.stop_before else None)
        self.guard = SkipGuard()
        self.plateau = None if watch.unigram_entropy is None else PlateauGuard(watch.unigram_entropy)
        self.keep_every = round(Budget.parse(config.keep_every).amount) if config.keep_every else 0
        self.writer = CheckpointWriter(folder, export=export, keep=config.keep, keep_every=self.keep_every)
        self._every = Budget.parse(config.checkpoint_every)
        self._saved_step, self._saved_at = -1, time.monotonic()  # of the newest checkpoint, complete or in the making
        self._metrics_bytes = 0  # of metrics.jsonl, as far as the checkpoint knows it
        self._unread: Taken | None = None
        self._paused = 0.0  # seconds since the last step that were not spent on training
        self._last_evaluated = -1
        self._evaluations = 0  # how many of the planned ones are behind us
        self._evaluation_seconds = 0.0  # the longest so far

    # ------------------------------------------------------------------------------------------------ state

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint whose weights the model already holds.

        Raises:
            ValueError: a checkpoint of another shape, or of a run of another configuration.
        """
        state, tensors = load_checkpoint(checkpoint)
        changed = TrainConfig.from_yaml(state["config"]).differences(self.config)
        if changed:
            raise ValueError(
                f"{checkpoint} is of another configuration ({'; '.join(changed)}); repeat the command that made it"
            )
        restore_random(tensors, self.device)
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
        self.guard.restore(state["guard"])
        point_to(checkpoint)  # where a newer one is damaged, or a kill came before that

    def checkpoint(self) -> None:
        """Begin to save everything that the next sitting needs, unless this step is saved already."""
        if self._saved_step == self.progress.step:
            return
        self._write_unread()
        started = time.monotonic()
        self._metrics_bytes = self.reporter.flush()
        state = {
            "progress": vars(self.progress),
            "reader": self.feed.position.to_json(),
            "metrics_bytes": self._metrics_bytes,
            "last_evaluated": self._last_evaluated,
            "evaluations": self._evaluations,
            "guard": self.guard.to_json(),
            "config": self.config.to_yaml(),
        }
        tensors = optimizer_tensors(self.model, self.optimizers) | random_states(self.device)
        self.writer.save(self.progress.step, self.model.state_dict(), tensors, state)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self._paused += self._saved_at - started

    def _checkpoint_due(self) -> bool:
        step, saved = self.progress.step, max(0, self._saved_step)
        if self._every.unit == "seconds":
            due = time.monotonic() - self._saved_at >= self._every.amount
        else:
            due = step // self._every.amount > saved // self._every.amount
        if not due and not (self.keep_every and step // self.keep_every > saved // self.keep_every):
            return False
        self._write_unread()
        return not self.guard.troubled  # a run that has to go back should go back further

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, with the data moved on; without one, go on from here with the next data.

        Step, weights, optimizers and metrics are those of the checkpoint. Tokens and seconds, which are spent, are not.

        Raises:
            ValueError: it has been tried too often.
        """
        self.guard.roll_back()
        self._unread = None
        self.writer.wait()
        checkpoint = newest_checkpoint(self.folder, self.display.say)
        ahead, before, guard = self.feed.position, self.progress, self.guard.to_json()
        if checkpoint is not None:
            self.model.load_state_dict(self.load(checkpoint / "model"))
            self.restore(checkpoint)
            self.guard.restore(guard)
            self.progress = replace(before, step=self.progress.step)
            self.reporter.rewind(self._metrics_bytes, self.progress.step)
        self.feed.restore(ahead.to_json())
        onward = (
            "there is no checkpoint to go back to" if checkpoint is None else f"back to step {self.progress.step:,}"
        )
        self.display.say(
            f"step {before.step:,}: too many steps without a finite loss or gradient; {onward}, "
            "the data go on from where they are"
        )

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
        per_step = self.reporter.seconds_per_step
        if self.budget.unit != "seconds" or self.reporter.steps_timed < 10 or spent < PLAN_AFTER or per_step is None:
            return
        remaining = max(0.0, self.budget.amount - self.progress.seconds)
        total = self.progress.step + round(remaining / per_step)
        self.progress = replace(self.progress, total_steps=max(total, self.progress.step))

    def _finished(self) -> bool:
        if self.budget.unit == "seconds":  # the planned steps are a forecast; the clock decides
            return self.progress.seconds >= self.budget.amount
        return bool(self.progress.total_steps) and self.progress.step >= self.progress.total_steps

    @property
    def stop_requested(self) -> str | None:
        """What stops the run before its budget is spent: a signal's name or an option's."""
        return self.stopping.reason

    def _stop_due(self) -> bool:
        needed = self._evaluation_seconds + self.writer.seconds + (self.reporter.seconds_per_step or 0.0)
        return self.stopping.check(needed) is not None

    def run(self) -> bool:
        """Train until the budget is spent, or a signal or a limit asks to stop.

        Raises:
            OSError: a full disk, say; the last checkpoint stays.
            ValueError: an export that is not what it should be, or steps that are never finite; likewise.
        """
        try:
            self.reporter.open(self._metrics_bytes, self.progress.step)
            try:
                with self.stopping:
                    self._train()
            finally:
                self.writer.close()
                self.reporter.close()
        except OSError as error:
            raise self._explained(error) from None
        return self._finished()

    def _train(self) -> None:
        while not self._finished() and not self.stop_requested:
            with closing(self.feed.batches(self.progress.step, self._share)) as batches:
                self._loop(batches)
            if self.guard.triggered:
                self._roll_back()
        if self._finished():  # a run that is stopped goes on from here as if it had not been: it is only saved
            self._evaluate()
        self.checkpoint()
        self.writer.wait()

    def _loop(self, batches: Iterator[Batch]) -> None:
        """Take steps until the run is over, must stop, or must go back."""
        self.model.train()
        self._evaluate_if_due()  # a stop may have come between a step and its evaluation
        batch = next(batches)
        mark = time.monotonic()
        if not self.progress.total_steps:
            self._plan(batch)
        while True:
            values, result = self.take(batch)
            self._write_unread()  # the step before: reading it now leaves the device busy with this one
            now = time.monotonic()
            took, mark = now - mark, now
            self.reporter.took(took)
            self.progress = replace(self.progress, seconds=self.progress.seconds + took)
            values |= {"seconds": round(self.progress.seconds, 3), "total_steps": self.progress.total_steps}
            self._unread = Taken(values, result, max(took - self._paused, 1e-9))
            self._paused = 0.0
            self._replan()
            self._show()
            if self._finished() or self._stop_due() or self.guard.triggered:
                break
            self._evaluate_if_due()
            if self._checkpoint_due():
                self.checkpoint()
            self.writer.check()
            batch = next(batches)
        self._write_unread()
        self._show(force=True)

    def _write_unread(self) -> None:
        """Write the line of the step last taken, if it is not written yet; waits until the device has computed it."""
        if self._unread is None:
            return
        taken, self._unread = self._unread, None
        result, values = taken.result, taken.values
        finite = bool(result.finite)
        if not finite and self.guard.calm:
            self.display.say(f"step {values['step']:,}: loss or gradient is not finite; the step is skipped")
        self.guard.observe(finite=finite)
        values |= {"loss": result.loss, "grad_norm": float(result.grad_norm), "skipped_steps": self.guard.skipped}
        correct = getattr(result, "correct", None)
        if correct is not None:
            values["accuracy"] = round(float(correct) / max(1, result.num_targets), 5)
        if self.guard.rollbacks:
            values["rollbacks"] = self.guard.rollbacks
        self.reporter.step(values, result.num_tokens, taken.seconds)
        if self.plateau is not None and self._share(values["step"]) > self.config.warmup:
            told = self.plateau.observe(values["loss"])
            if told:
                self.display.say(f"step {values['step']:,}: {told}")

    def _evaluate_if_due(self) -> None:
        if int(self.progress.share * self.config.evaluations) > self._evaluations:
            self._evaluate()

    def _evaluate(self) -> None:
        if self.evaluate is None or self._last_evaluated == self.progress.step:
            return
        self._write_unread()
        started = time.monotonic()
        score = self.evaluate(self.model)
        seconds = time.monotonic() - started
        self._evaluation_seconds = max(self._evaluation_seconds, seconds)
        self._last_evaluated = self.progress.step
        self._evaluations = int(self.progress.share * self.config.evaluations)
        values = {"step": self.progress.step, "valid_loss": score.loss, "valid_accuracy": score.accuracy}
        values |= {"valid_seconds": round(seconds, 3), "tokens": self.progress.tokens}
        self.reporter.held_out(values | {"seconds": round(self.progress.seconds, 3)})
        self.display.say(
            f"step {self.progress.step}: held-out loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f}%"
        )
        self.reporter.evaluated()
        self._paused += time.monotonic() - started

    def _show(self, *, force: bool = False) -> None:
        left = (self.progress.total_steps - self.progress.step) * (self.reporter.seconds_per_step or 0.0)
        if self.budget.unit == "seconds":
            left = min(left, self.budget.amount - self.progress.seconds)
        self.reporter.show(self.progress.share, left, self.feed.tokens_per_step, force=force)

    def _explained(self, error: OSError) -> OSError:
        """What a full disk means for the run, where that is the error."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        saved = [path.name for path in checkpoints(self.folder)]
        onward = f"goes on after {saved[-1]}" if saved else "begins again"
        return OSError(
            error.errno,
            f"the disk of {self.folder} is full; free some space and give the same command again, which {onward}",
        )
