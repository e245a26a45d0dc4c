"""How far a run has come."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Saved with every checkpoint.

    Attributes:
        step: optimizer steps taken.
        tokens: tokens of pieces read, padding not counted.
        seconds: time spent since the first step, over all sittings.
        total_steps: the budget in steps; for a time budget, as planned so far.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    total_steps: int = 0

    @property
    def share(self) -> float:
        """Share of the budget spent, in [0, 1]."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0
