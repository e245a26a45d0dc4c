"""Steps that are not finite change nothing, are counted, and send a run back; a loss at the unigrams' is named."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mlm_pytorch.training.guards import (
    CALM,
    MANY,
    PATIENCE,
    PLATEAU_STEPS,
    WINDOW,
    PlateauGuard,
    SkipGuard,
    is_finite,
    unigram_entropy,
)
from mlm_pytorch.training.muon import Muon


@pytest.mark.parametrize(("loss", "norm"), [(1.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (-math.inf, math.nan)])
def test_finite_means_both(loss, norm):
    expected = math.isfinite(loss) and math.isfinite(norm)
    assert bool(is_finite(torch.tensor(loss), torch.tensor(norm))) is expected


def test_many_of_the_last_ones_trigger_and_few_do_not():
    guard = SkipGuard()
    for step in range(100):  # fewer than MANY in every window
        guard.observe(finite=step % 3 > 0)
        assert not guard.triggered
    assert guard.skipped == 34 and not guard.calm
    for _ in range(MANY):
        guard.observe(finite=False)
    assert guard.triggered and guard.troubled
    guard.roll_back()
    assert not guard.triggered and guard.calm and guard.rollbacks == 1 and guard.skipped == 34 + MANY


def test_trouble_begins_at_half_of_what_sends_a_run_back():
    guard, seen = SkipGuard(), []
    for _ in range(MANY):
        guard.observe(finite=False)
        seen.append((guard.troubled, guard.triggered))
    assert seen == [(False, False), (False, False), (True, False), (True, False), (True, True)]


def storm(guard: SkipGuard) -> None:
    while not guard.triggered:
        guard.observe(finite=False)
    guard.roll_back()


def test_going_back_in_vain_ends_and_calm_forgives():
    guard = SkipGuard()
    for _ in range(PATIENCE):
        storm(guard)
    for _ in range(CALM):
        guard.observe(finite=True)
    for _ in range(PATIENCE):
        storm(guard)
    with pytest.raises(ValueError, match="again after going back 3 times; begin a new run with a lower --lr"):
        storm(guard)


@pytest.mark.parametrize("seed", range(5))
def test_a_restored_guard_goes_on_alike(seed):
    draw = np.random.default_rng(seed)
    events = draw.random(60) < 0.7
    whole, first = SkipGuard(), SkipGuard()
    for event in events[:30]:
        whole.observe(finite=bool(event))
        first.observe(finite=bool(event))
    second = SkipGuard()
    second.restore(first.to_json())
    for event in events[30:]:
        whole.observe(finite=bool(event))
        second.observe(finite=bool(event))
        assert whole.to_json() == second.to_json() and len(second.to_json()["recent"]) <= WINDOW


def test_muon_and_fused_adamw_leave_all_as_it_is_on_the_device():
    """What is decided on a CUDA device: no host knows of the skipped step."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
    optimizers = [Muon([{"params": [weight]}], lr=0.1, weight_decay=0.1), torch.optim.AdamW([bias], fused=True)]

    def step(found_inf: float, gradient: float) -> list[torch.Tensor]:
        for parameter in (weight, bias):
            parameter.grad = torch.full_like(parameter, gradient)
        for optimizer in optimizers:
            assert optimizer._step_supports_amp_scaling
            optimizer.found_inf = torch.tensor(found_inf)
            optimizer.step()
        state = [value for optimizer in optimizers for held in optimizer.state.values() for value in held.values()]
        return [value.detach().clone() for value in (weight, bias, *state)]

    start = [weight.detach().clone(), bias.detach().clone()]
    skipped_first = step(1.0, math.nan)
    assert all(torch.equal(a, b) for a, b in zip(start, skipped_first[:2], strict=True))
    taken = step(0.0, 1.0)
    assert not torch.equal(taken[0], start[0]) and not torch.equal(taken[1], start[1])
    again = step(1.0, math.nan)
    assert all(torch.equal(a, b) for a, b in zip(taken, again, strict=True))


def test_unigram_entropy():
    assert unigram_entropy(np.array([1, 1, 1, 1])) == pytest.approx(math.log(4))
    assert unigram_entropy(np.array([7, 0, 0])) == 0.0


def told(losses) -> list[str]:
    guard = PlateauGuard(7.0)
    return [text for loss in losses if (text := guard.observe(loss))]


def test_a_plateau_is_named_once():
    draw = np.random.default_rng(0)
    said = told(7.05 + 0.05 * draw.standard_normal(3 * PLATEAU_STEPS))
    assert len(said) == 1
    assert "stayed at 7.0" in said[0] and "the entropy of single tokens (7.00)" in said[0] and "--lr" in said[0]


@pytest.mark.parametrize(
    "losses",
    [
        np.linspace(9.0, 4.0, 1000),  # passes by
        np.full(1000, 5.0),  # a plateau, but of a model that knows more
        np.full(PLATEAU_STEPS - 1, 7.0),  # too soon to say
        np.linspace(7.2, 6.8, PLATEAU_STEPS),  # falls, slowly
        np.full(1000, np.nan),
    ],
)
def test_no_plateau(losses):
    assert told(losses) == []
