"""Guards: steps without a finite gradient are skipped and counted, a run that keeps failing goes back to its last
checkpoint, and a loss that stays where a model without context would be is called by its name.
"""

import math
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

WINDOW, MANY = 10, 5  # so many skipped steps of the last so many: go back
PATIENCE = 3  # so often in a row, before the run gives up
CALM = 100  # steps without a skipped one after which going back has helped
PLATEAU_STEPS = 200
PLATEAU_NEAR, PLATEAU_FALL = 0.03, 0.005  # of the entropy


def is_finite(loss_sum: Tensor, grad_norm: Tensor) -> Tensor:
    """Whether a step may be taken, () bool, decided where the tensors are.

    Example:
        >>> bool(is_finite(torch.tensor(3.0), torch.tensor(float("nan"))))
        False
    """
    return torch.isfinite(loss_sum) & torch.isfinite(grad_norm)


class SkipGuard:
    """Counts skipped steps and says when to go back to the last checkpoint.

    It asks to go back when `MANY` of the last `WINDOW` steps were skipped. The data go on from where they are, so that
    what did the harm is not read again. `PATIENCE` times without `CALM` good steps in a row in between, and it gives
    up.

    Attributes:
        skipped: steps skipped so far; going back does not take any off.
        rollbacks: how often the run went back.
    """

    def __init__(self) -> None:
        self.skipped = self.rollbacks = 0
        self._in_vain = 0
        self._calm = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def observe(self, *, finite: bool) -> None:
        """Take note of a step."""
        self._recent.append(not finite)
        self.skipped += not finite
        self._calm = self._calm + 1 if finite else 0
        if self._calm >= CALM:
            self._in_vain = 0

    @property
    def triggered(self) -> bool:
        """Whether to go back now."""
        return sum(self._recent) >= MANY

    @property
    def troubled(self) -> bool:
        """Whether that may soon be so: no time for a checkpoint to go back to."""
        return sum(self._recent) > MANY // 2

    @property
    def calm(self) -> bool:
        """Whether none of the last steps was skipped."""
        return not any(self._recent)

    def roll_back(self) -> None:
        """Take note that the run goes back.

        Raises:
            ValueError: it did so `PATIENCE` times, and it did not help.
        """
        if self._in_vain >= PATIENCE:
            raise ValueError(
                f"{MANY} of {WINDOW} steps had no finite loss or gradient, again after going back {PATIENCE} times; "
                "begin a new run with a lower --lr or with --precision float32"
            )
        self.rollbacks += 1
        self._in_vain += 1
        self._recent.clear()

    def to_json(self) -> dict[str, Any]:
        """As numbers, for the checkpoint."""
        return {
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "in_vain": self._in_vain,
            "calm": self._calm,
            "recent": list(self._recent),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `to_json`."""
        self.skipped, self.rollbacks = saved["skipped"], saved["rollbacks"]
        self._in_vain, self._calm = saved["in_vain"], saved["calm"]
        self._recent = deque(saved["recent"], maxlen=WINDOW)


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy of single tokens in nats, from how often each occurs: the loss of a model that knows nothing else.

    Example:
        >>> round(unigram_entropy(np.array([5, 5, 0])), 4)
        0.6931
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


class PlateauGuard:
    """Recognizes a loss that stays at the entropy of single tokens (transformers #3983).

    Args:
        entropy: see `unigram_entropy`.
    """

    def __init__(self, entropy: float):
        self.entropy = entropy
        self._losses: deque[float] = deque(maxlen=PLATEAU_STEPS)
        self._said = False

    def observe(self, loss: float) -> str | None:
        """Take note of a step's loss after the warm-up; returns what to tell the user, once."""
        if self._said or not math.isfinite(loss):
            return None
        self._losses.append(loss)
        if len(self._losses) < PLATEAU_STEPS:
            return None
        half = PLATEAU_STEPS // 2
        before, after = (float(np.mean(part)) for part in (list(self._losses)[:half], list(self._losses)[half:]))
        near = max(abs(before - self.entropy), abs(after - self.entropy)) <= PLATEAU_NEAR * self.entropy
        if not near or before - after > PLATEAU_FALL * self.entropy:
            return None
        self._said = True
        return (
            f"the loss has stayed at {after:.2f} for {PLATEAU_STEPS} steps, which is the entropy of single tokens "
            f"({self.entropy:.2f}): the model knows how frequent tokens are and makes nothing of their context. "
            "Likely causes: a learning rate that is too high or too low (try --lr a third and three times), too short "
            "a --warmup, too small batches (--packs-per-step), or a corpus whose documents are shuffled words"
        )
