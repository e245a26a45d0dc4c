import pytest
import torch
from torch import nn

from mlm_pytorch.training.averaging import WeightAverage
from mlm_pytorch.training.held_out import HeldOut


class Mean:
    """Scores a model by its weight, so that which weights were measured shows."""

    def __init__(self, model: nn.Linear):
        self.loss, self.accuracy = model.weight.item(), 0.25


def model_of(weight: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


@pytest.mark.parametrize("planned", [0, 1, 3, 20])
def test_as_many_as_planned_are_due_and_the_last_one_at_the_end(planned):
    held_out, model, steps = HeldOut(Mean, None, planned), model_of(1.0), []
    for step in range(1, 101):
        if held_out.due(step / 100):
            held_out.measure(model, None, step=step, share=step / 100)
            steps.append(step)
    assert len(steps) == planned and (not planned or steps[-1] == 100)


def test_no_step_is_measured_twice_and_nothing_where_nothing_is_held_out():
    held_out = HeldOut(Mean, None, planned=1)
    assert held_out.wanted(7)
    held_out.measure(model_of(1.0), None, step=7, share=1.0)
    assert not held_out.wanted(7) and held_out.wanted(8)
    assert not HeldOut(None, None, planned=1).wanted(7)
    assert HeldOut(None, Mean, planned=1).wanted(7)


def test_averaged_weights_and_the_text_to_keep_are_measured_beside_the_model():
    model = model_of(1.0)
    average = WeightAverage(model, 0.5)
    nn.init.constant_(model.weight, 3.0)
    held_out = HeldOut(Mean, lambda model: Mean(model_of(9.0)), planned=1)
    values, said = held_out.measure(model, average, step=5, share=0.5)
    found = {name: values[name] for name in ("step", "valid_loss", "ema_valid_loss", "ema_valid_accuracy", "keep_loss")}
    assert found == {"step": 5, "valid_loss": 3.0, "ema_valid_loss": 1.0, "ema_valid_accuracy": 0.25, "keep_loss": 9.0}
    assert said == (
        "step 5: held-out loss 3.000, accuracy 25.0%; averaged weights 1.000, accuracy 25.0%; "
        "loss on the text to keep 9.000"
    )
    assert torch.equal(model.weight.detach(), torch.full((1, 1), 3.0)), "the live weights are back"
