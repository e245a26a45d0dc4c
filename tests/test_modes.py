"""States for a while: whatever they were, they are put back."""

import pytest
import torch
from torch import nn

from mlm_pytorch.modes import evaluating, full_precision


def precisions():
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return [backend.fp32_precision for backend in backends]


@pytest.fixture
def restored():
    """The settings as torch starts with, before and after."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("older", ["highest", "high", "medium"])
@pytest.mark.parametrize("newer", [None, "ieee", "tf32"])
@pytest.mark.usefixtures("restored")
def test_full_precision_whichever_setting_was_used(older, newer):
    torch.set_float32_matmul_precision(older)
    if newer is not None:
        torch.backends.cuda.matmul.fp32_precision = newer
    before = precisions()
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert precisions() == ["ieee", "ieee"]
    assert precisions() == before
    if (older, newer) != ("highest", "tf32"):  # torch refuses to tell: the settings differ, as they did before
        assert torch.get_float32_matmul_precision() == older


def test_evaluation_mode_wakes_nothing():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
