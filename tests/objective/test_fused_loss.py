import pytest
import torch
from kernel_device import DEVICE, HALF

from mlm_pytorch.objective import fused_loss
from mlm_pytorch.objective.loss import cross_entropy_with_hits


def of_all(logits, labels, z_loss, fused, overwrite=False):
    leaf = logits.detach().clone().requires_grad_()
    logits = leaf * 1
    loss_sum, num_correct = cross_entropy_with_hits(logits, labels, z_loss=z_loss, fused=fused, overwrite=overwrite)
    (0.25 * loss_sum).backward()
    return loss_sum.detach(), num_correct, leaf.grad.float()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # by the interpreter's numpy
@pytest.mark.parametrize("columns", [17, 32, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_equals_the_loss_in_chunks(dtype, z_loss, columns, monkeypatch):
    monkeypatch.setattr(fused_loss, "_BLOCK", 32)
    logits = (3 * torch.randn(23, columns, device=DEVICE)).round().to(dtype)  # rounded: several are the largest
    labels = logits.argmax(1)
    labels[::3] = torch.randint(0, columns, (8,), device=DEVICE)
    labels[::5] = -100
    logits[5] = float("nan")  # ignored
    plain, ours = (of_all(logits, labels, z_loss, fused) for fused in (False, True))
    in_place = of_all(logits, labels, z_loss, fused=True, overwrite=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, in_place, strict=True))
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-4)
    assert ours[1] == plain[1] > 0
    torch.testing.assert_close(ours[2], plain[2], rtol=2e-2 if dtype == HALF else 1e-5, atol=1e-4)


def test_hits_are_the_first_of_equals():
    logits = torch.zeros(3, 40, device=DEVICE, dtype=HALF)
    logits[:, [4, 9, 35]] = 1
    _, num_correct, _ = of_all(logits, torch.tensor([9, 4, 35], device=DEVICE), 0.0, fused=True)
    assert num_correct == 1


def test_no_targets_give_zero():
    for rows in (0, 3):
        logits, labels = torch.randn(rows, 5, device=DEVICE), torch.full((rows,), -100, device=DEVICE)
        loss_sum, num_correct, gradient = of_all(logits, labels, 0.1, fused=True)
        assert loss_sum == 0 and num_correct == 0 and not gradient.any() and gradient.shape == (rows, 5)


def test_logits_that_were_overwritten_have_one_backward_pass():
    logits = 2 * torch.randn(3, 40, device=DEVICE, requires_grad=True)
    labels = torch.tensor([1, 2, 3], device=DEVICE)
    loss_sum, _ = cross_entropy_with_hits(logits, labels, fused=True, overwrite=True)
    loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_sum.backward()
