import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.training.schedule import Budget, learning_rate_factor


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("20m", "seconds", 1200),
        ("90s", "seconds", 90),
        ("1h30m", "seconds", 5400),
        ("2d", "seconds", 172_800),
        ("0.5h", "seconds", 1800),
        ("5000steps", "steps", 5000),
        ("1 step", "steps", 1),
        ("2epochs", "epochs", 2),
        ("0.5epochs", "epochs", 0.5),
        ("1Btokens", "tokens", 1e9),
        ("3.5Mtokens", "tokens", 3.5e6),
    ],
)
def test_budgets_that_can_be_read(text, unit, amount):
    assert Budget.parse(text) == Budget(unit, amount)


@pytest.mark.parametrize(
    "text", ["", "20", "m", "20 parsecs", "5steps10m", "1epoch2epochs", "-5m", "20m!", "1e3steps", "5M"]
)
def test_budgets_that_cannot(text):
    with pytest.raises(ValueError, match="cannot be read; write it like 20m"):
        Budget.parse(text)


def test_a_budget_of_nothing():
    with pytest.raises(ValueError, match="budget '0m' is not positive"):
        Budget.parse("0m")


def test_budgets_in_steps():
    assert Budget.parse("7steps").steps(100, 1000) == 7
    assert Budget.parse("2epochs").steps(100, 1000) == 20
    assert Budget.parse("3Ktokens").steps(100, 1000) == 30
    assert Budget.parse("1tokens").steps(100, 1000) == 1
    assert Budget.parse("1m").steps(100, 1000) is None


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_learning_rate_rises_stays_and_falls(progress, warmup, decay):
    factor = learning_rate_factor(progress, warmup, decay)
    assert 0 <= factor <= 1
    if warmup <= progress <= 1 - decay:
        assert factor == pytest.approx(1)
    if decay:
        assert learning_rate_factor(1.0, warmup, decay) == 0
    if warmup:
        assert learning_rate_factor(0.0, warmup, decay) == 0
