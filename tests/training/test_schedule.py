import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.training.schedule import BatchRamp, Budget, learning_rate_factor


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


SHARES = st.floats(0, 1)


@given(SHARES, st.floats(0, 0.5), st.floats(0, 0.5))
def test_learning_rate_rises_stays_and_falls(progress, warmup, decay):
    factor = learning_rate_factor(progress, warmup, decay)
    assert 0 <= factor <= 1
    if warmup <= progress <= 1 - decay:
        assert factor == pytest.approx(1)
    if decay:
        assert learning_rate_factor(1.0, warmup, decay) == 0
    if warmup:
        assert learning_rate_factor(0.0, warmup, decay) == 0


@given(st.sampled_from(["wsd", "linear", "cosine"]), SHARES, st.floats(0.01, 0.5), st.floats(0.01, 0.5), SHARES)
def test_schedules_are_continuous_and_in_bounds(shape, progress, warmup, decay, final):
    def factor(at):
        return learning_rate_factor(at, warmup, decay, shape=shape, final=final)

    assert 0 <= factor(progress) <= 1
    assert factor(0.0) == 0 and factor(1.0) == pytest.approx(final) and factor(warmup) == pytest.approx(1)
    step = 1e-6  # the steepest rise or fall is 100 for a share of 0.01, and half a wave is pi / 2 times as steep
    assert abs(factor(min(1.0, progress + step)) - factor(progress)) <= 160 * step
    if progress >= warmup:
        assert factor(progress) >= final - 1e-9
        assert factor(min(1.0, progress + step)) <= factor(progress) + 1e-12


@given(st.integers(1, 40), st.integers(1, 300))
def test_schedules_do_not_depend_on_the_number_of_steps(share, steps):
    """Step k of n and step 2k of 2n are the same point of a run."""
    for shape in ("wsd", "linear", "cosine"):
        short, long = share / (steps + 40), 2 * share / (2 * (steps + 40))
        assert learning_rate_factor(short, 0.1, 0.4, shape=shape) == learning_rate_factor(long, 0.1, 0.4, shape=shape)


def test_shapes_of_schedules():
    assert learning_rate_factor(0.55, 0.1, shape="linear") == pytest.approx(0.5)
    assert learning_rate_factor(0.55, 0.1, shape="cosine", final=0.2) == pytest.approx(0.6)
    assert learning_rate_factor(0.325, 0.1, shape="cosine") == pytest.approx((1 + 2**-0.5) / 2)
    with pytest.raises(ValueError, match="schedule 'square' is unknown; choose wsd"):
        learning_rate_factor(0.5, 0.1, shape="square")
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"progress .* is outside \[0, 1\]"):
            learning_rate_factor(progress, 0.1)


RAMPS = st.builds(BatchRamp, st.integers(1, 9), st.none() | st.integers(1, 9), st.floats(0.01, 1))


@given(RAMPS, st.integers(1, 200), st.data())
def test_packs_are_counted_as_the_steps_take_them(ramp, total, data):
    step = data.draw(st.integers(0, total))
    assert ramp.packs(total, step) == sum(ramp(k / total) for k in range(step, total))
    assert ramp(0.0) == ramp.start and ramp(1.0) == ramp.last
    taken = [ramp(k / total) for k in range(total)]
    assert taken in (sorted(taken), sorted(taken, reverse=True))


@pytest.mark.parametrize(("moves", "share", "total"), [(6, 0.88, 900), (8, 0.88, 440), (2, 0.56, 300)])
def test_packs_are_counted_where_a_border_times_the_steps_is_rounded_across_a_step(moves, share, total):
    ramp = BatchRamp(1, 1 + moves, share)
    assert ramp.packs(total) == sum(ramp(k / total) for k in range(total))


@given(RAMPS, st.floats(0, 2000), st.integers(0, 100))
def test_a_number_of_packs_becomes_the_nearest_number_of_steps(ramp, packs, step):
    total = ramp.total_steps(packs, step)
    reference = max(1, step)
    while ramp.packs(reference, step) < packs - min(ramp.start, ramp.last) / 2:
        reference += 1
    assert total == reference
    assert abs(ramp.packs(total, step) - packs) <= max(ramp.start, ramp.last, packs if total == 1 else 0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 10**6))
def test_a_ramp_spends_the_budget_in_tokens(start, end, tokens):
    ramp, budget = BatchRamp(start, end), Budget("tokens", tokens)
    steps = budget.steps(64, 1000, ramp)
    assert abs(64 * ramp.packs(steps) - tokens) <= 64 * max(start, end)
    assert Budget("steps", 7).steps(64, 1000, ramp) == 7 and Budget("seconds", 7).steps(64, 1000, ramp) is None
    assert Budget("epochs", 2).steps(64, 6400, ramp) == ramp.total_steps(200)


def test_ramps_that_cannot_be():
    with pytest.raises(ValueError, match="a step of 0 packs learns nothing"):
        BatchRamp(1, 0)
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"of a ramp is outside \(0, 1\]"):
            BatchRamp(1, 2, share)
