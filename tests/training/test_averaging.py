import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlm_pytorch.training.averaging import WeightAverage


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5), "still": nn.Linear(2, 2)})
    model["out"].weight = model["embed"].weight
    model["still"].requires_grad_(False)
    return model


@given(st.floats(0.01, 0.999), st.integers(1, 30))
def test_equals_a_slow_reference(decay, updates):
    """The mean as a sum over all weights there were, each with its own factor."""
    torch.manual_seed(0)
    model = tied()
    average = WeightAverage(model, decay)
    seen, shares = [model["embed"].weight.detach().double().clone()], [1.0]
    for n in range(1, updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        seen.append(model["embed"].weight.detach().double().clone())
        kept = min(decay, n / (n + 9))
        shares = [share * kept for share in shares] + [1 - kept]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(average.averages["embed.weight"].double(), expected, atol=1e-5, rtol=1e-5)
    assert set(average.averages) == {"embed.weight", "out.bias"}, "tied weights once, frozen ones not"


def test_in_place_and_back():
    model = tied()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model["embed"].weight.add_(1)
    average.update()
    live, saved = model["embed"].weight.clone(), average.tensors()
    with average.in_place():
        assert torch.equal(saved["live/embed.weight"], live), "what is saved does not follow"
        assert torch.equal(model["out"].weight, average.averages["embed.weight"])
        assert not torch.equal(model["out"].weight, live)
    assert torch.equal(model["embed"].weight, live)
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert torch.equal(model["embed"].weight, live)


def test_low_precision_weights_have_a_mean_that_moves():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(20_000):
        average.update()
    assert average.averages["weight"].item() == pytest.approx(1.0, abs=1e-3)


def test_round_trip_continues_bit_for_bit():
    def train(model, average, seeds):
        for seed in seeds:
            with torch.no_grad():
                model["embed"].weight.add_(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))
            average.update()

    model = tied()
    average = WeightAverage(model, 0.99)
    other = tied()
    train(model, average, range(3))
    saved = average.tensors() | {"embed.weight//exp_avg": torch.ones(5, 3)}
    continued = WeightAverage(other, 0.99)
    assert set(continued.load(saved)) == {"embed.weight//exp_avg"}
    train(model, average, range(3, 6))
    train(other, continued, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(average.tensors().values(), continued.tensors().values(), strict=True))


def test_errors():
    model = tied()
    for decay in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"--ema .* is outside \(0, 1\)"):
            WeightAverage(model, decay)
    average = WeightAverage(model, 0.9)
    with pytest.raises(ValueError, match=r"no averaged weights that fit \(average/embed.weight\)"):
        average.load({"embed.weight//exp_avg": torch.ones(5, 3)})
    saved = average.tensors()
    saved["live/out.bias"] = torch.ones(7)
    with pytest.raises(ValueError, match=r"no averaged weights that fit \(live/out.bias\)"):
        average.load(saved)
