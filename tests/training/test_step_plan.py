from dataclasses import replace

import pytest

from mlm_pytorch.training.progress import Progress
from mlm_pytorch.training.schedule import BatchRamp, Budget
from mlm_pytorch.training.step_plan import PLAN_FROM, StepPlan

RAMPS = [BatchRamp(1), BatchRamp(3), BatchRamp(1, 4, share=0.6), BatchRamp(4, 2)]


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("pace", [0.4, 1.0, 3.0])
def test_a_time_budget_is_kept_at_any_pace_that_does_not_change(ramp, pace):
    """A clock that ticks `pace` seconds for a pack, after a first estimate that may be wrong by far."""
    plan, budget = StepPlan(Budget.parse("600s"), ramp), 600.0
    progress = Progress(total_steps=plan.first(ramp.start, ramp.start * 1.0))
    while not plan.finished(progress):
        assert progress.seconds < budget
        packs = ramp(progress.share)
        progress = replace(progress, step=progress.step + 1, seconds=progress.seconds + pace * packs)
        progress = plan.corrected(progress, pace, steps_timed=progress.step)
        assert plan.seconds_left(progress, pace) <= budget - progress.seconds
    assert progress.seconds - budget < pace * max(ramp.start, ramp.last)
    assert abs(progress.total_steps - progress.step) <= 1


def test_a_pace_is_believed_after_some_steps_and_some_time():
    plan = StepPlan(Budget.parse("1000s"), BatchRamp(1))
    planned = Progress(step=PLAN_FROM, seconds=20.0, total_steps=77)
    assert plan.corrected(planned, 1.0, PLAN_FROM).total_steps == PLAN_FROM + 980
    assert plan.corrected(planned, 1.0, PLAN_FROM - 1) == planned
    assert plan.corrected(planned, None, PLAN_FROM) == planned
    early = replace(planned, seconds=19.9)
    assert plan.corrected(early, 1.0, PLAN_FROM) == early
    late = replace(planned, seconds=1001.0)
    assert plan.corrected(late, 1.0, PLAN_FROM).total_steps == PLAN_FROM and plan.finished(late)


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_run_that_goes_on_keeps_its_pace(ramp):
    """Half a budget later, as many packs again are to come as there were; of any other budget nothing changes."""
    plan, saved = StepPlan(Budget.parse("200s"), ramp), Progress(step=50, seconds=100.0, total_steps=50)
    packs = ramp.packs(50)
    total = plan.resumed(saved, packs, 0)
    assert abs(ramp.packs(total, 50) - packs) <= ramp.last
    assert plan.resumed(Progress(), 0, 0) == 0, "nothing is known before the first step"
    assert StepPlan(Budget.parse("70steps"), ramp).resumed(saved, packs, 70) == 70


def test_steps_decide_where_the_budget_is_not_time():
    plan = StepPlan(Budget.parse("10steps"), BatchRamp(2))
    assert not plan.finished(Progress(step=9, seconds=1e9, total_steps=10))
    assert plan.finished(Progress(step=10, total_steps=10))
    assert not plan.finished(Progress(step=10)), "a plan that is not made yet"
    assert plan.seconds_left(Progress(step=4, total_steps=10), 0.5) == 6.0
