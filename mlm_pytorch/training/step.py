"""One optimizer step: forward and backward of every micro-batch, clip, update. Nothing here waits for the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.distributed import Agreement, whole
from mlm_pytorch.training.guards import is_finite
from mlm_pytorch.training.micro_batches import MicroBatches, is_out_of_memory
from mlm_pytorch.training.optimizer import set_learning_rate
from mlm_pytorch.training.parallel import Parallel


class MicroBatch(Protocol):
    """What one forward takes, masked: a pack or a padded batch."""

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces, padding not counted."""
        ...

    @property
    def num_targets(self) -> int:
        """Selected positions, known on the host."""
        ...


M = TypeVar("M", bound=MicroBatch)


@dataclass(frozen=True)
class StandIn:
    """What a process computes for nothing in a step that deals it fewer micro-batches than others.

    Passes through a model that is spread over processes need all of them.
    """

    micro_batch: MicroBatch
    num_tokens: int = 0
    num_targets: int = 0


# Takes the model and a micro-batch; returns the summed loss and how many targets were right, both on the device.
Loss = Callable[[nn.Module, M], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """What a step found. The tensors are on the device; reading them waits for it.

    Attributes:
        loss_sum: () float32, summed over all targets of all processes.
        num_correct: () float32, targets of all processes that were the likeliest token.
        num_targets: of all micro-batches of all processes.
        num_tokens: likewise, padding not counted.
        grad_norm: () float32, before clipping.
        finite: () bool; where loss or gradients were not, the step was skipped.
    """

    loss_sum: Tensor
    num_correct: Tensor
    num_targets: int
    num_tokens: int
    grad_norm: Tensor
    finite: Tensor

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.loss_sum) / max(1, self.num_targets)

    @property
    def accuracy(self) -> float:
        """Share of targets that were right."""
        return int(self.num_correct) / max(1, self.num_targets)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products that `--precision` means on a device; None for float32.

    >>> autocast_dtype("bf16", torch.device("cpu"))
    torch.bfloat16
    """
    if precision == "auto":
        return native_precision(device)
    return torch.bfloat16 if precision == "bf16" else None


class TrainingStep:
    """Takes optimizer steps of a model on micro-batches whose loss `loss` computes.

    Args:
        parallel: the model, on its device or spread over several.
        loss: summed loss of a micro-batch, and how many of its targets were right.
        optimizers: each parameter in at most one.
        autocast: dtype of matrix products, None for the model's own.
        clip: largest norm of the gradient; 0 for no limit.
        sizes: how much of a step one forward takes; less after it ran out of memory. By default one batch.
    """

    def __init__(
        self,
        parallel: Parallel,
        loss: Loss,
        optimizers: list[torch.optim.Optimizer],
        *,
        autocast: torch.dtype | None,
        clip: float,
        sizes: MicroBatches | None = None,
    ):
        self.parallel, self.loss, self.optimizers = parallel, loss, optimizers
        self.sizes = sizes or MicroBatches()
        self.autocast, self.clip = autocast, clip
        self.parameters = [p for p in parallel.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device

    def backward(self, micro_batches: Sequence[MicroBatch], agreement: Agreement) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over all targets of a step; returns the summed loss and the number of hits.

        Out of memory, a process that trains alone begins the step again with less in each forward: the same batches,
        the same gradient.

        Raises:
            ValueError: the memory does not hold a single piece.
        """
        while True:
            try:
                return self._backward(self.sizes.deal(micro_batches), agreement)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.parallel.world.size > 1:  # others would wait for ever
                    raise
            # Outside of `except`: the error's traceback keeps every activation alive.
            self.forget_gradients()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.sizes.shrink(micro_batches)

    def _backward(self, micro_batches: Sequence[MicroBatch], agreement: Agreement) -> tuple[Tensor, Tensor]:
        world = self.parallel.world
        found = torch.zeros(2, device=self.device)  # loss and hits, so that one sum serves both
        for number, batch in enumerate(micro_batches, start=1):
            stands_in = isinstance(batch, StandIn)
            with self.parallel.backward_of(last=number == len(micro_batches)):
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    batch_sum, num_correct = self.loss(self.parallel.module, batch.micro_batch if stands_in else batch)
                # the engines average over processes
                scale = 0.0 if stands_in else world.size / max(1, agreement.num_targets)
                (batch_sum * scale).backward()
            if not stands_in:
                found[0] += batch_sum.detach()
                found[1] += num_correct
        loss_sum, num_correct = world.sum(found)
        return loss_sum, num_correct

    def __call__(self, micro_batches: Sequence[MicroBatch], lr: float, agreement: Agreement) -> StepResult:
        """One optimizer step at a learning rate; weights and optimizers stay as they are where it is not finite."""
        set_learning_rate(self.optimizers, lr)
        loss_sum, num_correct = self.backward(micro_batches, agreement)
        norm = self._clip()
        finite = is_finite(loss_sum, norm)
        self._update(finite)
        self.forget_gradients()
        return StepResult(loss_sum, num_correct, agreement.num_targets, agreement.num_tokens, norm, finite)

    def _clip(self) -> Tensor:
        """The norm () of the gradient, which is scaled to `clip` where it exceeds that."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        limited = whole(norm)
        # A product with one changes nothing, but passes over all gradients; only a host can ask for it at no cost.
        if self.clip and (self.device.type != "cpu" or limited + 1e-6 > self.clip):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        return limited

    def _update(self, finite: Tensor) -> None:
        """Let the optimizers step if `finite`, () bool; those that can are not told before the device knows."""
        for optimizer in self.optimizers:
            # What torch's GradScaler asks for and sets: fused optimizers then leave the skipping to the device.
            on_device = self.device.type != "cpu" and not self.parallel.sharded
            if on_device and getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            elif not finite:
                continue
            optimizer.step()

    def forget_gradients(self) -> None:
        """Drop the gradients there are."""
        for parameter in self.parameters:
            parameter.grad = None
