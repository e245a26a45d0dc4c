"""The masking rate as a function of training progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mlm_pytorch.masking.scores import MILLION, millionths

Shape = Literal["constant", "linear", "cosine", "step"]


@dataclass(frozen=True)
class RateSchedule:
    """A rate that moves from `start` to `end` while progress moves from 0 to 1; called, it returns millionths.

    shape: "constant" stays at `start`; "linear" and "cosine" glide; "step" falls in `steps` equal treads, the first at
    `start`, the last at `end` (Yang et al. 2023, arXiv 2305.15096, find falling rates faster than constant ones).

    >>> RateSchedule(0.30, 0.15)(0.5)
    225000

    Raises ValueError for rates outside [0, 1], an unknown shape, or fewer than 2 steps.
    """

    start: float = 0.30
    end: float = 0.15
    shape: Shape = "linear"
    steps: int = 4

    def __post_init__(self) -> None:
        for rate in (self.start, self.end):
            millionths(rate)
        if self.shape not in ("constant", "linear", "cosine", "step"):
            raise ValueError(f"shape {self.shape!r} is unknown; choose constant, linear, cosine or step")
        if self.shape == "step" and self.steps < 2:
            raise ValueError(f"steps {self.steps} leaves no step to take; choose 2 or more, or shape='constant'")

    def __call__(self, progress: float) -> int:
        """The rate in millionths at `progress` in [0, 1]; ValueError outside."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress {progress} is outside [0, 1]; pass the share of the budget that is spent")
        match self.shape:
            case "constant":
                share = 0.0
            case "linear":
                share = progress
            case "cosine":
                share = (1.0 - math.cos(math.pi * progress)) / 2.0
            case "step":
                share = min(int(progress * self.steps), self.steps - 1) / (self.steps - 1)
        start, end = millionths(self.start), millionths(self.end)
        return start + round((end - start) * share)


def mask_rate(schedule: float | RateSchedule | Callable[[float], float | int], progress: float) -> int:
    """The rate in millionths at `progress` in [0, 1].

    schedule: a constant share such as 0.15, a `RateSchedule`, or any callable of progress that returns a share.

    >>> mask_rate(lambda progress: 0.4 - 0.2 * progress, 1.0)
    200000

    Raises ValueError for progress or a share outside [0, 1].
    """
    if isinstance(schedule, RateSchedule):
        return schedule(progress)
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress {progress} is outside [0, 1]; pass the share of the budget that is spent")
    rate = millionths(schedule(progress) if callable(schedule) else schedule)
    assert 0 <= rate <= MILLION
    return rate
