"""Rate schedules: ends exact, shapes as named, integers out."""

import math

import pytest

from mlm_pytorch.masking import RateSchedule, mask_rate


@pytest.mark.parametrize("shape", ["linear", "cosine", "step"])
def test_ends_are_exact_and_the_way_is_monotone(shape):
    schedule = RateSchedule(0.30, 0.15, shape=shape)
    rates = [schedule(i / 1000) for i in range(1001)]
    assert all(isinstance(rate, int) for rate in rates)
    assert rates[0] == 300_000 and rates[-1] == 150_000
    assert rates == sorted(rates, reverse=True)


def test_shapes():
    assert RateSchedule(0.3, 0.1, shape="constant")(0.9) == 300_000
    assert RateSchedule(0.3, 0.1, shape="linear")(0.25) == 250_000
    assert RateSchedule(0.3, 0.1, shape="cosine")(0.25) == round(300_000 - 100_000 * (1 - math.cos(math.pi / 4)))
    treads = RateSchedule(0.4, 0.1, shape="step", steps=4)
    assert [treads(p) for p in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [
        400_000, 400_000, 300_000, 200_000, 200_000, 100_000, 100_000,
    ]  # fmt: skip
    assert [RateSchedule(0.4, 0.1, shape="step", steps=2)(p) for p in (0, 0.49, 0.5, 1)] == [
        400_000, 400_000, 100_000, 100_000,
    ]  # fmt: skip
    assert RateSchedule(0.1, 0.3)(0.5) == 200_000  # rising is fine


def test_what_is_not_named_falls_from_30_to_15_percent_in_4_treads():
    assert [RateSchedule()(p) for p in (0, 1)] == [300_000, 150_000]
    assert [RateSchedule(shape="step")(p / 4) for p in range(4)] == [300_000, 250_000, 200_000, 150_000]


def test_mask_rate_takes_numbers_schedules_and_callables():
    assert mask_rate(0.15, 0.7) == 150_000
    assert mask_rate(RateSchedule(0.30, 0.15), 0.5) == 225_000
    assert mask_rate(lambda progress: 0.4 - 0.2 * progress, 0.5) == 300_000
    for schedule in (0.15, RateSchedule(0.15, 0.15), lambda progress: 0.15):
        assert mask_rate(schedule, 0.0) == mask_rate(schedule, 1.0) == 150_000


def test_bad_schedules():
    with pytest.raises(ValueError, match=r"probability 1.5 is outside"):
        RateSchedule(1.5, 0.1)
    with pytest.raises(ValueError, match=r"probability -0.1 is outside"):
        RateSchedule(0.5, -0.1)
    with pytest.raises(ValueError, match="shape 'square' is unknown"):
        RateSchedule(shape="square")
    with pytest.raises(ValueError, match="steps 1 leaves no step"):
        RateSchedule(shape="step", steps=1)
    for schedule in (0.15, RateSchedule(), lambda progress: 0.1):
        for progress in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=r"progress .* is outside \[0, 1\]"):
                mask_rate(schedule, progress)
    with pytest.raises(ValueError, match="probability 15 is outside"):
        mask_rate(lambda progress: 15, 0.5)
