"""The training loop: packs in, steps out, nothing lost on the way."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlm_pytorch.data.batches import Position
from mlm_pytorch.training.averaging import WeightAverage
from mlm_pytorch.training.checkpoint import (
    about_full_disk,
    load_checkpoint,
    newest_checkpoint,
    point_to,
    random_states,
    restore_random,
)
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.distributed import Agreement, World
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.guards import PlateauGuard, SkipGuard
from mlm_pytorch.training.held_out import Evaluate, HeldOut
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from mlm_pytorch.training.parallel import Parallel
from mlm_pytorch.training.progress import Progress
from mlm_pytorch.training.reporting import NOTHING_MORE, Reporter, Watch
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.step import Loss, StepResult, TrainingStep, autocast_dtype
from mlm_pytorch.training.step_plan import StepPlan
from mlm_pytorch.training.stopping import Stopping
from mlm_pytorch.training.writer import CheckpointWriter, Export


@dataclass(frozen=True)
class Taken:
    """A step whose line is not written yet: what is known of it, and what the device is still computing."""

    values: dict[str, Any]
    result: StepResult
    seconds: float  # by itself, without evaluations and the like


class Trainer:
    """Trains a model, step by step, until the budget is spent.

    Args:
        model: the model, on its device.
        loss: summed loss of what the feed's batches hold, and how many of its targets were right.
        feed: batches in training order.
        config: the recipe.
        folder: the run's folder, for checkpoints and metrics.
        lr: peak learning rate.
        tokens_per_epoch: tokens of the store, framing counted; turns a budget in epochs into steps.
        store_fingerprint: the store's; a checkpoint of a run on another one is refused.
        evaluate: measures the held-out loss of a model, or None where nothing is held out.
        keep: measures the loss on general text likewise, to see what is forgotten.
        measure_first: measure before the first step as well.
        export: writes weights in Hugging Face format into a folder; called in a thread of its own.
        load: reads what `export` wrote, as the model's `state_dict`.
        display: the console.
        watch: what else is told and looked after.
        world: the processes that train together, each with a trainer like this one; the first one writes.

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
        store_fingerprint: str,
        evaluate: Evaluate | None,
        keep: Evaluate | None = None,
        measure_first: bool = False,
        export: Export,
        load: Callable[[Path], Mapping[str, Tensor]],
        display: Display,
        watch: Watch = NOTHING_MORE,
        world: World | None = None,
    ):
        self.model, self.feed, self.config, self.folder = model, feed, config, folder
        self.load, self.display, self.watch, self.lr = load, display, watch, lr
        self.store_fingerprint = store_fingerprint
        self.device = next(model.parameters()).device
        self.autocast = autocast_dtype(config.precision, self.device)
        self.measure_first, self.world = measure_first, world or World()
        self.held_out = HeldOut(evaluate, keep, config.evaluations)
        self.parallel = Parallel(model, config.parallel, self.world, shard_ranks=config.shard_ranks)
        self.optimizers = build_optimizers(
            model,
            config.optimizer or FROM_SCRATCH["optimizer"],
            lr,
            config.weight_decay,
            embedding_lr=config.embedding_lr,
            orthogonalize=self.parallel.orthogonalize,
        )
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.step = TrainingStep(self.parallel, loss, self.optimizers, autocast=self.autocast, clip=config.clip)
        self.step.sizes.notice = display.say
        budget, ramp = Budget.parse(config.budget), config.batch_ramp
        self.plan = StepPlan(budget, ramp)
        per_pack = feed.reader.mean_tokens() if budget.unit in ("tokens", "epochs") else 1.0  # only then asked for
        self.progress = Progress(total_steps=budget.steps(per_pack, tokens_per_epoch, ramp) or 0)
        self.reporter = Reporter(folder, display, watch, self.device, writes=self.world.is_main)
        self.stopping = Stopping(Budget.parse(config.stop_before).amount if config.stop_before else None)
        self.guard = SkipGuard()
        self.plateau = None if watch.unigram_entropy is None else PlateauGuard(watch.unigram_entropy)
        self.keep_every = round(Budget.parse(config.keep_every).amount) if config.keep_every else 0
        self.writer = CheckpointWriter(folder, export=export, keep=config.keep_checkpoints, keep_every=self.keep_every)
        self._every = Budget.parse(config.checkpoint_every)
        self._saved = Progress(step=-1)  # at the newest checkpoint, complete or in the making
        self._began = time.monotonic()  # when the run would have begun in one sitting
        self._metrics_bytes = 0  # of metrics.jsonl, as far as the checkpoint knows it
        self._unread: Taken | None = None
        self._paused = 0.0  # seconds since the last step that were not spent on training

    # ------------------------------------------------------------------------------------------------ state

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint whose weights the model already holds.

        Raises:
            ValueError: a checkpoint of another shape, of a run of another configuration, or on another store.
        """
        state, tensors = load_checkpoint(checkpoint, self.model)
        before = TrainConfig.from_yaml(state["config"])
        changed = before.differences(self.config)
        if changed:
            raise ValueError(
                f"{checkpoint} is of another configuration ({'; '.join(changed)}); repeat the command that made it"
            )
        if state.get("store", self.store_fingerprint) != self.store_fingerprint:
            raise ValueError(
                f"{checkpoint} was trained on another store: this one holds other pieces, or the same by another "
                "tokenizer or in another order; continue with the store that the run began with, or choose another "
                "--out"
            )
        restore_random(tensors, self.device)
        if self.average is not None:
            tensors = self.average.load(tensors)
        load_optimizer_tensors(self.model, self.optimizers, tensors)
        self.feed.restore(state["reader"])
        saved = Progress(**state["progress"])
        total_steps = self.plan.resumed(saved, self.feed.position.next_pack, self.progress.total_steps)
        self.progress = self._saved = replace(saved, total_steps=total_steps)
        self._metrics_bytes = state["metrics_bytes"]
        self.held_out.last_step, self.held_out.done = state["last_evaluated"], state["evaluations"]
        if before.budget != self.config.budget:
            self.held_out.replan(self.progress.share)
        self.guard.restore(state["guard"])
        if self.world.is_main:
            point_to(checkpoint)  # where a newer one is damaged, or a kill came before that

    def checkpoint(self, *, last: bool = False) -> None:
        """Begin to save everything that the next sitting needs, unless this step is saved already. The `last` one of
        this sitting is saved when this returns.
        """
        if self._saved.step == self.progress.step:
            return
        self._write_unread()
        started = time.monotonic()
        self._metrics_bytes = self.reporter.flush()
        state = {
            "progress": vars(self.progress),
            "reader": Position.merge(self.world.gather(self.feed.position)).to_json(),
            "metrics_bytes": self._metrics_bytes,
            "last_evaluated": self.held_out.last_step,
            "evaluations": self.held_out.done,
            "guard": self.guard.to_json(),
            "config": self.config.to_yaml(),
            "store": self.store_fingerprint,
        }
        tensors = optimizer_tensors(self.model, self.optimizers)
        if self.parallel.sharded:
            self.writer.save_in_parts(self.progress.step, self.parallel, tensors, state)
        elif self.world.is_main:
            tensors |= random_states(self.device)
            if self.average is not None:
                tensors |= self.average.tensors()
            with self.averaged():
                self.writer.save(self.progress.step, self.model.state_dict(), tensors, state, last=last)
            if self.device.type == "cuda":
                # Reading an export back, transformers sets torch's default device for the whole process. Compiled
                # layers that run meanwhile take that for a change, and are compiled again.
                self.writer.wait()
        self._saved = self.progress
        self._paused += time.monotonic() - started

    def averaged(self) -> AbstractContextManager[None]:
        """Within this context the model holds what is exported: the mean of its weights where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _checkpoint_due(self) -> bool:
        step, saved = self.progress.step, max(0, self._saved.step)
        if self._every.unit == "seconds":  # of training, by the clock that all processes share
            due = self.progress.seconds - self._saved.seconds >= self._every.amount
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
        if self.parallel.sharded:
            raise ValueError(
                f"step {self.progress.step:,}: too many steps without a finite loss or gradient; a model in parts does "
                "not go back by itself, so give the same command again, with another seed or less --lr in a new folder"
            )
        self._unread = None
        self.writer.wait()
        checkpoint = self.world.from_main(lambda: newest_checkpoint(self.folder, self.display.say))
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
            "mask_prob": batch.rate / 1e6,
            "fill": round(result.num_tokens / (self.feed.reader.capacity * packs), 4),
        }
        return values, result

    def _agree(self, batch: Batch) -> Agreement:
        return self.world.agree(
            sum(one.num_targets for one in batch.micro_batches),
            sum(one.num_tokens for one in batch.micro_batches),
            stop=self._stop_due,
            seconds=lambda: time.monotonic() - self._began,
        )

    # --------------------------------------------------------------------------------------------------- run

    def _try_out(self, batch: Batch) -> None:
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
        self.progress = replace(self.progress, total_steps=self.plan.first(packs, fastest))

    def _finished(self) -> bool:
        return self.plan.finished(self.progress)

    @property
    def stop_requested(self) -> str | None:
        """What stops the run before its budget is spent: a signal's name or an option's."""
        return self.stopping.reason

    def _stop_due(self) -> bool:
        needed = self.held_out.seconds + self.writer.seconds + (self.reporter.seconds_per_step or 0.0)
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
                with self.world.watch(), self.stopping:
                    self._train()
            finally:
                self.writer.close()
                self.reporter.close()
                self.parallel.close()
        except OSError as error:
            raise about_full_disk(error, self.folder) from None
        return self._finished()

    def _train(self) -> None:
        if self.measure_first and self.progress.step == 0:
            self._evaluate()
        self._stopped = False
        while not self._finished() and not self._stopped:
            with closing(self.feed.batches(self.progress.step, self._share)) as batches:
                self._loop(batches)
            if self.guard.triggered:
                self._roll_back()
        if self._finished():  # a run that is stopped goes on from here as if it had not been: it is only saved
            self._evaluate()
        self.checkpoint(last=True)
        self.writer.wait()
        if not self._finished():  # nor measured; but whoever looks should see how far it came
            self._tell_evaluated()
        self.world.barrier()  # until the first process has written it

    def _loop(self, batches: Iterator[Batch]) -> None:
        """Take steps until the run is over, must stop, or must go back."""
        self.model.train()
        self._evaluate_if_due()  # a stop may have come between a step and its evaluation
        batch = next(batches)
        mark, began = time.monotonic(), False
        self._began = mark - self.progress.seconds
        if not self.progress.total_steps:
            self._try_out(batch)
            mark = time.monotonic()
        self._paused = 0.0  # an evaluation before the first step is no part of that step
        while True:
            packs_before = self.feed.position.next_pack
            values, result = self.take(batch)
            self._write_unread()  # the step before: reading it now leaves the device busy with this one
            now = time.monotonic()
            took, mark = now - mark, now
            seconds = self._agreement.seconds  # by one clock for all, since decisions follow from it
            if self.world.size == 1 or began:  # among others it is the time of the step before
                packs = self.feed.position.next_pack - packs_before
                self.reporter.took(seconds - self.progress.seconds, packs)
            self.progress, began = replace(self.progress, seconds=seconds), True
            values |= {"seconds": round(self.progress.seconds, 3), "total_steps": self.progress.total_steps}
            self._unread = Taken(values, result, max(took - self._paused, 1e-9))
            self._paused = 0.0
            self.progress = self.plan.corrected(
                self.progress, self.reporter.seconds_per_pack, self.reporter.steps_timed
            )
            self._show()
            self._stopped = self._agreement.stop
            if self._stopped and self.stopping.reason is None:
                self.stopping.reason = "a signal to another process"
            if self._finished() or self._stopped or self.guard.triggered:
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
        values["accuracy"] = round(result.accuracy, 5)
        if self.guard.rollbacks:
            values["rollbacks"] = self.guard.rollbacks
        self.reporter.step(values, result.num_tokens, taken.seconds)
        if self.plateau is not None and self._share(values["step"]) > self.config.warmup_share:
            told = self.plateau.observe(values["loss"])
            if told:
                self.display.say(f"step {values['step']:,}: {told}")

    def _tell_evaluated(self) -> None:
        with self.averaged():  # the page shows what the model does that is exported
            self.reporter.evaluated()

    def _evaluate_if_due(self) -> None:
        # Where the clock leaves time for more steps than were planned, only the very last one is measured.
        if self.progress.share < 1 and self.held_out.due(self.progress.share):
            self._evaluate()

    def _evaluate(self) -> None:
        """By all processes alike: with parts of the model none could alone."""
        if not self.held_out.wanted(self.progress.step):
            return
        self._write_unread()
        started = time.monotonic()
        values, said = self.held_out.measure(
            self.model, self.average, step=self.progress.step, share=self.progress.share
        )
        self.parallel.reshard()
        values |= {"tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 3)}
        self.reporter.held_out(values)
        self.display.say(said)
        self._tell_evaluated()
        self._paused += time.monotonic() - started

    def _show(self, *, force: bool = False) -> None:
        left = self.plan.seconds_left(self.progress, self.reporter.seconds_per_pack or 0.0)
        self.reporter.show(self.progress.share, left, self.feed.reader.capacity, force=force)
