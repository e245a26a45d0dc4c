"""Evaluations in the course of a run: when one is due, what it measures, and how that is said."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from mlm_pytorch.training.averaging import WeightAverage


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


Evaluate = Callable[[nn.Module], Score]


class HeldOut:
    """What a run measures on text that it is not trained on.

    Args:
        evaluate: of a model on held-out text, or None where nothing is held out.
        keep: likewise on general text, to see what is forgotten.
        planned: how many evaluations are spread over the run.

    Attributes:
        last_step: the step that was last measured; -1 before the first.
        done: how many of the planned evaluations are behind us.
        seconds: the longest one of this sitting took so long.

    Example:
        >>> held_out = HeldOut(evaluate=None, keep=None, planned=4)
        >>> [held_out.due(share) for share in (0.0, 0.24, 0.25)]
        [False, False, True]
    """

    def __init__(self, evaluate: Evaluate | None, keep: Evaluate | None, planned: int):
        self.evaluate, self.keep, self.planned = evaluate, keep, planned
        self.last_step, self.done, self.seconds = -1, 0, 0.0

    def due(self, share: float) -> bool:
        """Whether one is, at this share of the budget."""
        return int(share * self.planned) > self.done

    def replan(self, share: float) -> None:
        """Take note that `share` is spent of another budget: the rest is due over what is left of it."""
        self.done = min(self.done, int(share * self.planned))

    def wanted(self, step: int) -> bool:
        """Whether anything can be measured that is not known of this step already."""
        return (self.evaluate is not None or self.keep is not None) and self.last_step != step

    def measure(
        self, model: nn.Module, average: WeightAverage | None, *, step: int, share: float
    ) -> tuple[dict[str, Any], str]:
        """Values for the metrics, and how they are said; also of the averaged weights, where there are some."""
        started = time.monotonic()
        values: dict[str, Any] = {"step": step}
        said = []
        if self.evaluate is not None:
            score = self.evaluate(model)
            values |= {"valid_loss": score.loss, "valid_accuracy": score.accuracy}
            said.append(f"held-out loss {score.loss:.3f}, accuracy {100 * score.accuracy:.1f}%")
            if average is not None:
                with average.in_place():
                    score = self.evaluate(model)
                values |= {"ema_valid_loss": score.loss, "ema_valid_accuracy": score.accuracy}
                said.append(f"averaged weights {score.loss:.3f}, accuracy {100 * score.accuracy:.1f}%")
        if self.keep is not None:
            values["keep_loss"] = self.keep(model).loss
            said.append(f"loss on the text to keep {values['keep_loss']:.3f}")
        seconds = time.monotonic() - started
        self.last_step, self.done, self.seconds = step, int(share * self.planned), max(self.seconds, seconds)
        return values | {"valid_seconds": round(seconds, 3)}, f"step {step}: {'; '.join(said)}"
