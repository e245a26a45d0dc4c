"""How many steps a budget makes. One of time makes as many as it has time for, which is estimated and corrected."""

from dataclasses import dataclass, replace

from mlm_pytorch.training.progress import Progress
from mlm_pytorch.training.schedule import BatchRamp, Budget

PLAN_AFTER = 0.02  # share of a time budget after which steps that were taken say more than the first estimate
PLAN_FROM = 10  # steps, likewise


@dataclass(frozen=True)
class StepPlan:
    """Plans a run's number of steps, which rates, ramps and evaluations are functions of.

    Attributes:
        budget: of the run.
        ramp: packs of a step as a function of progress.

    Example:
        >>> plan = StepPlan(Budget.parse("60s"), BatchRamp(1))
        >>> plan.first(packs=1, seconds=0.5), plan.finished(Progress(step=114, seconds=59.8, total_steps=114))
        (114, False)
    """

    budget: Budget
    ramp: BatchRamp

    def first(self, packs: int, seconds: float) -> int:
        """Steps of a time budget, where a pass over `packs` packs takes `seconds`; a step takes a little more."""
        return self.ramp.total_steps(packs * self.budget.amount / (1.05 * seconds))

    def resumed(self, saved: Progress, packs: int, total_steps: int) -> int:
        """Steps of a run that goes on after `packs` packs: of a time budget, which may be a longer one, at the pace so
        far; of any other `total_steps`, as planned.
        """
        if self.budget.unit != "seconds" or not saved.step:
            return total_steps
        return self.ramp.total_steps(packs * (self.budget.amount / saved.seconds - 1), saved.step)

    def corrected(self, progress: Progress, seconds_per_pack: float | None, steps_timed: int) -> Progress:
        """Progress with a time budget's number of steps by what packs have taken of late."""
        spent = progress.seconds / self.budget.amount
        if self.budget.unit != "seconds" or steps_timed < PLAN_FROM or spent < PLAN_AFTER or seconds_per_pack is None:
            return progress
        remaining = max(0.0, self.budget.amount - progress.seconds)
        return replace(progress, total_steps=self.ramp.total_steps(remaining / seconds_per_pack, progress.step))

    def finished(self, progress: Progress) -> bool:
        """Whether the budget is spent: by the clock, of whose budget the planned steps are a forecast."""
        if self.budget.unit == "seconds":
            return progress.seconds >= self.budget.amount
        return bool(progress.total_steps) and progress.step >= progress.total_steps

    def seconds_left(self, progress: Progress, seconds_per_pack: float) -> float:
        """How long the rest will take."""
        left = self.ramp.packs(progress.total_steps, progress.step) * seconds_per_pack
        return min(left, self.budget.amount - progress.seconds) if self.budget.unit == "seconds" else left
