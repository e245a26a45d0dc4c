"""A running mean of the weights, kept beside those that are trained.

The weights of single steps scatter around the path of training by the noise of their batches; a mean over the last
steps lies closer to it (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407). The gain is largest while the
learning rate is high, and small where it has fallen to zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Entries of a checkpoint, beside the optimizer's (which are called PARAMETER//ENTRY).
_AVERAGE, _LIVE, _UPDATES = "average/", "live/", "average_updates"
_RISE = 9  # the decay of update n is at most n / (n + 9)


class WeightAverage:
    """Exponential mean of a model's trainable parameters, in float32.

    Update n sets average = d * average + (1 - d) * weights with d = min(decay, n / (n + 9)): the mean reaches back over
    about a tenth of the steps taken, later over 1 / (1 - decay) of them, so the first weights are soon forgotten.

    Costs a copy of the weights in memory, which each update reads and writes once.

    Args:
        model: on its device; buffers are not averaged.
        decay: in (0, 1).

    Raises:
        ValueError: a decay outside (0, 1).

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, decay=0.15)
        >>> for value in (1.0, 2.0):
        ...     weight = nn.init.constant_(model.weight, value)
        ...     average.update()
        >>> with average.in_place():                       # 0.15 of what update 1 left, which nearly was 1, and of 2
        ...     1.7 < model.weight.item() < 1.9
        True
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"--ema {decay} is outside (0, 1); 0.99 to 0.9999 is usual, 0 turns averaging off")
        self.decay, self.updates = decay, 0
        self._weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: weight.float().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Let the weights, as they are now, into the mean; once after each step."""
        self.updates += 1
        share = 1.0 - min(self.decay, self.updates / (self.updates + _RISE))
        weights = [weight.float() for weight in self._weights.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the model holds the mean, to be evaluated or exported. Nothing may train meanwhile."""
        live = {name: weight.clone() for name, weight in self._weights.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(live)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside an export of the mean: the mean in float32, the live weights, the count.

        The live weights are copies, so that `in_place` may follow.
        """
        return (
            {_AVERAGE + name: value for name, value in self.averages.items()}
            | {_LIVE + name: value.clone() for name, value in self._weights.items()}
            | {_UPDATES: torch.tensor(self.updates)}
        )

    def load(self, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take mean and live weights from a checkpoint's tensors, into the model as well; returns the other tensors.

        Raises:
            ValueError: tensors of another model, or of a run that did not average.
        """
        rest = dict(saved)
        wanted = [prefix + name for prefix in (_AVERAGE, _LIVE) for name in self._weights]
        for key in wanted:
            if key not in saved or saved[key].shape != self._weights[key.partition("/")[2]].shape:
                raise ValueError(
                    f"the checkpoint has no averaged weights that fit ({key}); it is of another shape, or without --ema"
                )
        mine = {key: rest.pop(key) for key in (*wanted, _UPDATES)}
        self.updates = int(mine[_UPDATES])
        for name, value in self.averages.items():
            value.copy_(mine[_AVERAGE + name])
        self._fill({name: mine[_LIVE + name] for name in self._weights})
        return rest
