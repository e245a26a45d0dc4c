"""Budgets, and what depends on how much of one is spent."""

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
    def parse(cls, text: str) -> "Budget":
        """Read `20m`, `1h30m`, `5000steps`, `2epochs`, `1Btokens`.

        Raises:
            ValueError: anything else, and amounts that are not positive.
        """
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
        rest = re.sub(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", "", text).strip()
        units = [_UNITS.get(unit) for _, unit in parts]
        rule = f"budget {text!r} cannot be read; write it like 20m, 3h, 1h30m, 5000steps, 2epochs or 1Btokens"
        if not parts or rest or None in units:
            raise ValueError(rule)
        known = [unit for unit in units if unit is not None]
        if len({unit for unit, _ in known}) > 1 or (len(known) > 1 and known[0][0] != "seconds"):
            raise ValueError(rule)
        amount = sum(float(number) * scale for (number, _), (_, scale) in zip(parts, known, strict=True))
        if amount <= 0:
            raise ValueError(f"budget {text!r} is not positive; write it like 20m or 5000steps")
        return cls(known[0][0], amount)

    def steps(self, tokens_per_step: float, tokens_per_epoch: int) -> int | None:
        """The budget as a number of steps; None for a time budget, which only throughput can tell."""
        match self.unit:
            case "steps":
                return max(1, round(self.amount))
            case "tokens":
                return max(1, round(self.amount / tokens_per_step))
            case "epochs":
                return max(1, round(self.amount * tokens_per_epoch / tokens_per_step))
            case "seconds":
                return None


def learning_rate_factor(progress: float, warmup: float, decay: float) -> float:
    """Warm-up, plateau, decay to zero (Hu et al. 2024, arXiv 2404.06395, with a linear decay), as a share of the peak.

    Args:
        progress: share of the budget spent, in [0, 1].
        warmup: share of the budget over which the rate rises from 0.
        decay: share of the budget, at its end, over which it falls to 0.

    Example:
        >>> [learning_rate_factor(p, warmup=0.1, decay=0.5) for p in (0.05, 0.3, 0.75, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    rising = progress / warmup if warmup else 1.0
    falling = (1.0 - progress) / decay if decay else 1.0
    return max(0.0, min(1.0, rising, falling))
