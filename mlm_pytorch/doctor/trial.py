"""A short real trial: the named model, on sampled pieces, with training's own packs, masks, loss and optimizers; and
what follows for a whole run.

    resources:  what this machine has free
    forecast of flops and bytes -> may the trial be made at all?
    run_trial:  Setup, pieces -> Trial      (measured)
    forecast:   Trial -> Forecast           (memory, disk and time of the run, by arithmetic from what was measured)
"""

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.doctor.findings import Finding, level_of
from mlm_pytorch.doctor.masks import SampledPieces
from mlm_pytorch.doctor.ranks import activation_bytes, flops_per_token, model_sizes
from mlm_pytorch.doctor.setup import Setup
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.training.device import free_memory
from mlm_pytorch.training.optimizer import build_optimizers
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.throughput import measure_peak

REPEATED_PASSES = 4  # over a corpus; beyond, repetition begins to cost (Muennighoff et al. 2023, arXiv 2305.16264)


@dataclass(frozen=True)
class Resources:
    """Bytes free: of the device's memory, and of the disk that the run would be written to."""

    memory: int
    disk: int


def free_resources(device: torch.device, folder: Path) -> Resources:
    """What is free now; of memory also what a container allows. Where nothing tells, memory is taken to be enough."""
    memory = free_memory(device)
    return Resources(1 << 62 if memory is None else memory, shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class Trial:
    """What was measured, or reckoned where `steps` is 0.

    pack_tokens: of the packs that were run; smaller than the run's where those would take too long here.
    steps, seconds: that were timed, the first ones left out; tokens_per_second: of pieces, padding not counted.
    step_seconds: of one step of the run (all its packs, and the optimizer).
    state_bytes: weights, gradients and optimizer state; peak_bytes: the most memory in use, or an estimate of it.
    first_loss, last_loss: nats per target, None without a trial. note: what was not done, and why; "" where all was.
    """

    device: str
    precision: str
    pack_tokens: int
    steps: int
    seconds: float
    tokens_per_second: float
    step_seconds: float
    fill: float
    state_bytes: int
    peak_bytes: int
    first_loss: float | None
    last_loss: float | None
    note: str = ""


def run_trial(
    setup: Setup,
    pieces: SampledPieces,
    masker: PackMasker,
    seconds: float,
    free: Resources,
    make_model: Callable[[], nn.Module],
) -> Trial:
    """Train for so many seconds, all in all, and say what a step takes.

    Where even the smallest pack would take too long or not fit the memory that is free, nothing is run: the step is
    reckoned from a matrix product's measured speed.
    """
    longest = int(pieces.lengths(range(len(pieces))).max()) + len(pieces.special.prefix) + len(pieces.special.suffix)  # type: ignore[arg-type]
    sizes = model_sizes(setup.config, setup.optimizer)
    state = 8 * sizes.parameters + sizes.optimizer_bytes
    rate = measure_peak(setup.device, setup.autocast or torch.float32)
    mean = pieces.num_tokens / len(pieces)
    flops = flops_per_token(setup.config, mean, setup.mask_prob)
    full = setup.packs_per_step * setup.pack_tokens
    reckoned = 2 * full * flops / rate  # training reaches about half of a large product's speed
    smallest = min(setup.pack_tokens, max(longest, 512))
    if 2 * smallest * flops / rate > seconds / 3 or 1.5 * state > free.memory:
        why = (
            "the model's state would not fit the memory that is free" if 1.5 * state > free.memory else "it is too slow"
        )
        peak = state + activation_bytes(setup.config, setup.pack_tokens, setup.mask_prob)
        return Trial(
            setup.device.type, _precision(setup), 0, 0, 0.0, full / reckoned, reckoned, 1.0, state, peak, None, None,
            f"no step was run, since {why} for {seconds:g} seconds; reckoned from matrix products at "
            f"{rate / 1e9:,.0f} GFLOP/s",
        )  # fmt: skip
    return _Run(setup, pieces, masker, make_model()).measure(seconds, smallest, longest, state)


def _precision(setup: Setup) -> str:
    return "bf16" if setup.autocast else "float32"


class _Run:
    """The trial's training."""

    def __init__(self, setup: Setup, pieces: SampledPieces, masker: PackMasker, model: nn.Module):
        self.setup, self.pieces, self.masker = setup, pieces, masker
        self.model = model.to(setup.device).train()
        self.head = find_head(self.model)
        self.optimizers = build_optimizers(self.model, setup.optimizer, 1e-3, 0.05)
        self.losses: list[float] = []

    def measure(self, seconds: float, smallest: int, longest: int, state: int) -> Trial:
        """Warm up on small packs, see how much of a full one there is time for, time as many as fit."""
        deadline = time.monotonic() + seconds
        if self.setup.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.setup.device)
        begun = time.monotonic()
        small = self._reader(smallest, longest)
        timed = [self._timed(small)]
        capacity, wanted, note = smallest, self.setup.pack_tokens, ""
        backward, stepping, _ = timed[0]
        room = int(smallest * (deadline - time.monotonic() - 3 * stepping) / (3 * backward))
        if room > smallest and wanted > smallest:
            capacity = min(wanted, room)
            reader = self._reader(capacity, longest)
            self._timed(reader)  # sets up kernels for this size
            begun, timed = time.monotonic(), []
        else:
            reader = small
        while not timed or time.monotonic() + sum(timed[-1][:2]) < deadline:
            timed.append(self._timed(reader))
        if capacity < wanted:
            note = (
                f"packs of {capacity:,} tokens instead of {wanted:,}, for which {seconds:g} seconds are too short here"
            )
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > 1.5 * cores and self.setup.device.type == "cpu":
            note += (
                f"{'; ' if note else ''}other work on this machine (load {load:.0f} on {cores} cores) slowed it down"
            )
        return self._trial(timed, capacity, state, time.monotonic() - begun, note)

    def _trial(
        self, timed: list[tuple[float, float, int]], capacity: int, state: int, seconds: float, note: str
    ) -> Trial:
        backward, stepping, tokens = (sum(column) / len(timed) for column in zip(*timed, strict=True))
        setup = self.setup
        step_seconds = backward * setup.pack_tokens / capacity * setup.packs_per_step + stepping
        fill = tokens / capacity
        return Trial(
            device=setup.device.type,
            precision=_precision(setup),
            pack_tokens=capacity,
            steps=len(timed),
            seconds=seconds,
            tokens_per_second=fill * setup.pack_tokens * setup.packs_per_step / step_seconds,
            step_seconds=step_seconds,
            fill=fill,
            state_bytes=state,
            peak_bytes=self._peak(),
            first_loss=self.losses[0],
            last_loss=sum(self.losses[-5:]) / len(self.losses[-5:]),
            note=note,
        )

    def _reader(self, capacity: int, longest: int) -> Reader:
        return Reader(self.pieces, max(capacity, longest), seed=0, longest=longest)

    def _timed(self, reader: Reader) -> tuple[float, float, int]:
        """Seconds of forward and backward, of the optimizers, and tokens of pieces, of a step of one pack."""
        masked = [self.masker(pack, round(1e6 * self.setup.mask_prob)) for pack in reader.take(1)]
        targets = max(1, sum(pack.num_targets for pack in masked))
        start = time.perf_counter()
        total = torch.zeros((), device=self.setup.device)
        for pack in masked:
            with torch.autocast(self.setup.device.type, self.setup.autocast, enabled=self.setup.autocast is not None):
                loss, _ = pack_loss(self.model, self.head, pack.to(self.setup.device))
            (loss / targets).backward()
            total += loss.detach()
        self.losses.append(float(total) / targets)
        middle = time.perf_counter()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize(self.setup.device)
        return middle - start, time.perf_counter() - middle, sum(pack.num_tokens for pack in masked)

    def _peak(self) -> int:
        if self.setup.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.setup.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


# -- what follows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """Of a whole run, by arithmetic.

    tokens: of the corpus; epoch_seconds: once over it; steps, budget_seconds, epochs: what the budget comes to.
    prepare_seconds: to tokenize the corpus at the sample's rate, on this many cores.
    store_bytes, checkpoint_bytes: on disk; the latter of all checkpoints that are kept, and one being written.
    memory_bytes: of the process that trains.
    at_least: the size of the corpus is not known, and `tokens` are those read: what follows from them is a lower bound,
    of `epochs` an upper one.
    """

    tokens: int
    epoch_seconds: float
    steps: int
    budget_seconds: float
    epochs: float
    prepare_seconds: float
    store_bytes: int
    checkpoint_bytes: int
    memory_bytes: int
    at_least: bool = False

    @property
    def passes(self) -> str:
        """How often the corpus is read, in words."""
        if self.at_least:
            return f"at most {self.epochs:.2f} passes over at least {self.tokens:,} tokens"
        return f"{self.epochs:.2f} passes over about {self.tokens:,} tokens"


def forecast(setup: Setup, trial: Trial, *, tokens: int, pieces: int, prepare_seconds: float) -> Forecast:
    """What a run on so many tokens will take. Raises ValueError for a budget that cannot be read."""
    budget = Budget.parse(setup.budget)
    per_step = setup.pack_tokens * setup.packs_per_step * max(trial.fill, 1e-9)
    steps = budget.steps(max(1, round(per_step)), tokens)
    steps = max(1, round(budget.amount / trial.step_seconds)) if steps is None else steps
    sizes = model_sizes(setup.config, setup.optimizer)
    width = 2 if setup.config.vocab_size <= 1 << 16 else 4
    return Forecast(
        tokens=tokens,
        epoch_seconds=tokens / max(1e-9, trial.tokens_per_second),
        steps=steps,
        budget_seconds=steps * trial.step_seconds,
        epochs=steps * per_step / max(1, tokens),
        prepare_seconds=prepare_seconds,
        store_bytes=tokens * width + pieces * 16,
        checkpoint_bytes=(setup.keep + 1) * (4 * sizes.parameters + sizes.optimizer_bytes),
        memory_bytes=trial.peak_bytes,
    )


def check_forecast(setup: Setup, trial: Trial, expected: Forecast, free: Resources) -> list[Finding]:
    """Whether memory, disk and time are enough."""
    return [
        _check_memory(trial, expected, free),
        _check_disk(expected, free),
        _check_passes(setup, trial, expected),
    ]


def _check_memory(trial: Trial, expected: Forecast, free: Resources) -> Finding:
    measured = "measured" if trial.steps else "reckoned"
    seen = f"{expected.memory_bytes / 1e9:.2f} GB {measured}, {free.memory / 1e9:.1f} GB free before the trial"
    share = expected.memory_bytes / max(1, free.memory)
    level = level_of(share, 0.8, 1.0)
    if level == "green":
        return Finding("memory", "green", "memory is enough", seen, value=share)
    return Finding(
        "memory",
        level,
        "Memory is short",
        seen,
        "the run is killed, or the machine swaps",
        "lower --pack-tokens (and raise --packs-per-step), or choose a smaller model",
        share,
    )


def _check_disk(expected: Forecast, free: Resources) -> Finding:
    needed = expected.store_bytes + expected.checkpoint_bytes
    seen = (
        f"{needed / 1e9:.2f} GB ({expected.store_bytes / 1e9:.2f} store, {expected.checkpoint_bytes / 1e9:.2f} "
        f"checkpoints), {free.disk / 1e9:.1f} GB free here"
    )
    share = needed / max(1, free.disk)
    level = level_of(share, 0.8, 1.0)
    if level == "green":
        return Finding("disk", "green", "disk is enough", seen, value=share)
    return Finding(
        "disk",
        level,
        "Disk is short",
        seen,
        "the run stops when the disk is full",
        "free some, write the run elsewhere, or keep fewer checkpoints with --keep-checkpoints",
        share,
    )


def _check_passes(setup: Setup, trial: Trial, expected: Forecast) -> Finding:
    seen = f"{setup.budget}: {expected.steps:,} steps, {expected.passes}, at {trial.tokens_per_second:,.0f} tokens/s"
    if expected.epochs > 10 * REPEATED_PASSES and not expected.at_least:
        return Finding(
            "budget", "yellow", "The corpus is small for the budget", seen,
            f"after about {REPEATED_PASSES} passes more of the same brings ever less",
            "shorten --budget, or find more text", expected.epochs,
        )  # fmt: skip
    if expected.steps < 50:
        return Finding(
            "budget", "yellow", "The budget is a few steps", seen, "nothing is learned in so few",
            "raise --budget, or choose a smaller model", float(expected.steps),
        )  # fmt: skip
    parameters = model_sizes(setup.config, setup.optimizer).parameters
    if expected.steps * setup.pack_tokens * setup.packs_per_step < 0.1 * parameters:
        return Finding(
            "budget", "yellow", "The model is large for the budget", seen,
            f"{parameters / 1e6:.0f}M parameters see fewer than a tenth as many tokens",
            "choose a smaller --model, or raise --budget", expected.epochs,
        )  # fmt: skip
    return Finding("budget", "green", "budget, model and corpus suit each other", seen, value=expected.epochs)


def check_loss(trial: Trial, vocabulary: int) -> Finding:
    """Whether the trial's losses are numbers that a model at its beginning can have."""
    if trial.first_loss is None or trial.last_loss is None:
        return Finding("loss", "green", "no step was run", trial.note)
    uniform = math.log(max(2, vocabulary))
    seen = f"{trial.first_loss:.2f} at first, {trial.last_loss:.2f} after {trial.steps} steps; ln V is {uniform:.2f}"
    if trial.last_loss < 3 * uniform:  # which a NaN is not
        return Finding("loss", "green", "the loss is a loss", seen, value=trial.last_loss)
    return Finding(
        "loss", "red", "The loss is no number, or explodes", seen, "training would diverge at once",
        "pass --precision float32, or start from other weights", trial.last_loss,
    )  # fmt: skip
