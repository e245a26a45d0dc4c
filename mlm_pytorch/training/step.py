"""One optimizer step: forward and backward of every micro-batch, clip, update. Nothing here waits for the device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mlm_pytorch.training.guards import is_finite
from mlm_pytorch.training.optimizer import set_learning_rate


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

# Takes the model and a micro-batch; returns the summed loss and the number of targets, both on the device.
Loss = Callable[[nn.Module, M], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """What a step found. The tensors are on the device; reading them waits for it.

    Attributes:
        loss_sum: () float32, summed over all targets.
        num_targets: of all micro-batches.
        num_tokens: likewise, padding not counted.
        grad_norm: () float32, before clipping.
        finite: () bool; where loss or gradients were not, the step was skipped.
    """

    loss_sum: Tensor
    num_targets: int
    num_tokens: int
    grad_norm: Tensor
    finite: Tensor

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.loss_sum) / max(1, self.num_targets)


def native_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively, None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, name, lambda: False)() for name in checks) else None
    return None


class TrainingStep:
    """Takes optimizer steps of a model on micro-batches whose loss `loss` computes.

    Args:
        model: the model, on its device.
        loss: summed loss and number of targets of a micro-batch.
        optimizers: each parameter in at most one.
        autocast: dtype of matrix products, None for the model's own.
        clip: largest norm of the gradient; 0 for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizers: list[torch.optim.Optimizer],
        *,
        autocast: torch.dtype | None,
        clip: float,
    ):
        self.model, self.loss, self.optimizers = model, loss, optimizers
        self.autocast, self.clip = autocast, clip
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device

    def backward(self, micro_batches: Sequence[MicroBatch]) -> tuple[Tensor, int]:
        """Gradients of the mean loss over all targets of a step; returns the summed loss and the count."""
        num_targets = sum(batch.num_targets for batch in micro_batches)
        loss_sum = torch.zeros((), device=self.device)
        for batch in micro_batches:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                batch_sum, _ = self.loss(self.model, batch)
            (batch_sum / max(1, num_targets)).backward()
            loss_sum += batch_sum.detach()
        return loss_sum, num_targets

    def __call__(self, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """One optimizer step at a learning rate; weights and optimizers stay as they are where it is not finite."""
        set_learning_rate(self.optimizers, lr)
        loss_sum, num_targets = self.backward(micro_batches)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip or math.inf)
        finite = is_finite(loss_sum, norm)
        self._update(finite)
        self.forget_gradients()
        return StepResult(loss_sum, num_targets, sum(batch.num_tokens for batch in micro_batches), norm, finite)

    def _update(self, finite: Tensor) -> None:
        """Let the optimizers step if `finite`, () bool; those that can are not told before the device knows."""
        for optimizer in self.optimizers:
            # What torch's GradScaler asks for and sets: fused optimizers then leave the skipping to the device.
            if self.device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            elif not finite:
                continue
            optimizer.step()

    def forget_gradients(self) -> None:
        """Drop the gradients there are."""
        for parameter in self.parameters:
            parameter.grad = None
