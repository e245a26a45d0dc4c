"""Budgets, and what depends on how much of one is spent."""

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["seconds", "steps", "epochs", "tokens"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "h": ("seconds", 3600),
    "d": ("seconds", 86400),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "epoch": ("epochs", 1),
    "epochs": ("epochs", 1),
    "tokens": ("tokens", 1),
    "Ktokens": ("tokens", 1e3),
    "Mtokens": ("tokens", 1e6),
    "Btokens": ("tokens", 1e9),
}


@dataclass(frozen=True)
class Budget:
    """How long to train: an amount of time, optimizer steps, epochs or tokens.

    Example:
        >>> Budget.parse("20m"), Budget.parse("1.5Btokens").amount
        (Budget(unit='seconds', amount=1200.0), 1500000000.0)
    """

    unit: Unit
    amount: float

    @classmethod
    def parse(cls, text: str, name: str = "budget") -> "Budget":
        """Read `20m`, `1h30m`, `5000steps`, `2epochs`, `1Btokens`; `name` is what messages call it.

        Raises:
            ValueError: anything else, and amounts that are not positive.
        """
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
        rest = re.sub(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", "", text).strip()
        units = [_UNITS.get(unit) for _, unit in parts]
        rule = f"{name} {text!r} cannot be read; write it like 20m, 3h, 1h30m, 5000steps, 2epochs or 1Btokens"
        if not parts or rest or None in units:
            raise ValueError(rule)
        known = [unit for unit in units if unit is not None]
        if len({unit for unit, _ in known}) > 1 or (len(known) > 1 and known[0][0] != "seconds"):
            raise ValueError(rule)
        amount = sum(float(number) * scale for (number, _), (_, scale) in zip(parts, known, strict=True))
        if amount <= 0:
            raise ValueError(f"{name} {text!r} is not positive; write it like 20m or 5000steps")
        return cls(known[0][0], amount)

    def steps(self, tokens_per_pack: float, tokens_per_epoch: int, ramp: "BatchRamp | None" = None) -> int | None:
        """The budget as a number of steps; None for a time budget, which only throughput can tell.

        Args:
            tokens_per_pack: in one pack on average, padding not counted.
            tokens_per_epoch: of the corpus.
            ramp: packs of a step as a function of progress; one by default.
        """
        ramp = ramp or BatchRamp(1)
        match self.unit:
            case "steps":
                return max(1, round(self.amount))
            case "tokens":
                return ramp.total_steps(self.amount / tokens_per_pack)
            case "epochs":
                return ramp.total_steps(self.amount * tokens_per_epoch / tokens_per_pack)
            case "seconds":
                return None


@dataclass(frozen=True)
class BatchRamp:
    """Packs of one step as a function of progress: from `start` to `end` in equal treads, over a share of the budget.

    Small batches early learn more from each token, large ones late make better use of the hardware and of a low
    learning rate (McCandlish et al. 2018, arXiv 1812.06162: the useful batch grows as the loss falls).

    Args:
        start: packs of the first step.
        end: packs from `share` of the budget on; as many as at the start by default.
        share: share of the budget over which the number moves.

    Raises:
        ValueError: fewer than one pack, or a share outside (0, 1].

    Example:
        >>> ramp = BatchRamp(1, 4, share=0.6)
        >>> [ramp(p) for p in (0.0, 0.19, 0.2, 0.5, 0.6, 1.0)], ramp.packs(10)
        ([1, 1, 2, 3, 4, 4], 28)
    """

    start: int
    end: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if min(self.start, self.last) < 1:
            raise ValueError(f"a step of {min(self.start, self.last)} packs learns nothing; give at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of a ramp is outside (0, 1]; 0.5 is usual")

    @property
    def last(self) -> int:
        """Packs of the last step."""
        return self.start if self.end is None else self.end

    def __call__(self, progress: float) -> int:
        """Packs of the step at `progress` in [0, 1]."""
        passed = sum(progress >= border for border in self._borders())
        return self.start + (passed if self.last >= self.start else -passed)

    def _borders(self) -> list[float]:
        """Where in [0, 1] the number of packs moves by one, the last time at `share`."""
        moves = abs(self.last - self.start)
        return [self.share * (i + 1) / moves for i in range(moves)]

    def packs(self, total_steps: int, step: int = 0) -> int:
        """Packs of the steps from `step` to the end of a budget of `total_steps`, the step k being at k / total_steps.

        Costs as much as the ramp has treads, not as it has steps.
        """
        count = self.start * (total_steps - step)
        for border in self._borders():
            first = math.ceil(border * total_steps)  # the first step beyond the border, as `__call__` sees it:
            while first > 0 and (first - 1) / total_steps >= border:
                first -= 1
            while first / total_steps < border:
                first += 1
            beyond = max(0, total_steps - max(step, first))
            count += beyond if self.last >= self.start else -beyond
        return count

    def total_steps(self, packs: float, step: int = 0) -> int:
        """The budget in steps at whose end `packs` more have been read than before `step`, to the nearest; at least 1.

        Progress is a share of that very number. So the number is searched for: the more steps, the more packs.

        Example:
            >>> BatchRamp(1, 4, share=0.6).total_steps(28), BatchRamp(2).total_steps(9), BatchRamp(2).total_steps(9, 50)
            (10, 4, 54)
        """
        low = high = max(1, step)
        wanted = packs - min(self.start, self.last) / 2
        while self.packs(high, step) < wanted:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.packs(middle, step) >= wanted else (middle + 1, high)
        return low


Shape = Literal["wsd", "linear", "cosine"]


def learning_rate_factor(
    progress: float, warmup: float, decay: float = 1.0, *, shape: Shape = "wsd", final: float = 0.0
) -> float:
    """The learning rate as a share of its peak. All shapes rise linearly from 0 and end at `final`.

    Args:
        progress: share of the budget spent, in [0, 1].
        warmup: share of the budget over which the rate rises.
        decay: share of the budget, at its end, over which the rate of "wsd" falls; the other shapes fall all the way
            from the end of the rise.
        shape: "wsd": rise, plateau, straight fall (Hu et al. 2024, arXiv 2404.06395). "linear": no plateau. "cosine":
            half a wave (Loshchilov & Hutter 2017, arXiv 1608.03983).
        final: share of the peak that is left at the end.

    Raises:
        ValueError: progress outside [0, 1], or an unknown shape.

    Example:
        >>> [learning_rate_factor(p, warmup=0.1, decay=0.5) for p in (0.05, 0.3, 0.75, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
        >>> [round(learning_rate_factor(p, warmup=0.0, shape="cosine", final=0.1), 3) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.55, 0.1]
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress {progress} is outside [0, 1]; pass the share of the budget that is spent")
    rising = progress / warmup if warmup else 1.0
    fall = decay if shape == "wsd" else 1.0 - warmup
    left = min(1.0, (1.0 - progress) / fall) if fall else 1.0
    match shape:
        case "wsd" | "linear":
            share = left
        case "cosine":
            share = (1.0 - math.cos(math.pi * left)) / 2.0
        case _:
            raise ValueError(f"schedule {shape!r} is unknown; choose wsd, linear or cosine")
    return min(rising, final + (1.0 - final) * share)
