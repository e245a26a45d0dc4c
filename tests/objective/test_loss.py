import pytest
import torch
import torch.nn.functional as F

from mlm_pytorch.objective import cross_entropy, loss
from mlm_pytorch.objective.loss import cross_entropy_with_hits


@pytest.fixture(params=[1 << 20, 50, 5])  # all rows, some, and one that is longer than a chunk
def chunk(request, monkeypatch):
    monkeypatch.setattr(loss, "CPU_CHUNK", request.param)


def reference(logits, labels, z_loss=0.0):
    logits = logits.float()
    keep = labels != -100
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total + z_loss * (logits.logsumexp(-1)[keep] ** 2).sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_plain_cross_entropy(chunk, dtype, z_loss):
    logits = (3 * torch.randn(23, 17)).to(dtype).requires_grad_()
    labels = torch.randint(0, 17, (23,))
    labels[::5] = -100
    loss_sum, num_targets = cross_entropy(logits, labels, z_loss=z_loss)
    (loss_sum / num_targets).backward()
    twin = logits.detach().clone().requires_grad_()
    expected = reference(twin, labels, z_loss)
    (expected / num_targets).backward()
    assert num_targets == 18
    assert num_targets.dtype == torch.int64
    assert loss_sum.dtype == torch.float32
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad, twin.grad, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-3)


def test_accumulates_in_float32_under_autocast():
    logits = torch.randn(4000, 8).bfloat16()
    labels = torch.randint(0, 8, (4000,))
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, _ = cross_entropy(logits, labels)
    assert loss_sum.dtype == torch.float32
    torch.testing.assert_close(loss_sum, reference(logits, labels), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_targets_give_zero_with_a_gradient(rows):
    logits = torch.randn(rows, 5, requires_grad=True)
    loss_sum, num_targets = cross_entropy(logits, torch.full((rows,), -100))
    loss_sum.backward()
    assert loss_sum == 0
    assert num_targets == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_rows_may_hold_nan():
    logits = torch.randn(3, 5)
    logits[1] = float("nan")
    logits.requires_grad_()
    loss_sum, _ = cross_entropy(logits, torch.tensor([1, -100, 2]), z_loss=0.1)
    loss_sum.backward()
    assert loss_sum.isfinite()
    assert logits.grad.isfinite().all()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    loss_sum, _ = cross_entropy(logits, torch.tensor([0]))
    loss_sum.backward()
    assert loss_sum == 0
    assert logits.grad.isfinite().all()


def test_no_gradient_is_built_where_none_is_wanted():
    assert not cross_entropy(torch.randn(3, 5), torch.tensor([0, 1, 2]))[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles(dtype):
    compiled = torch.compile(lambda x, y: cross_entropy(x, y, z_loss=0.01), backend="eager", fullgraph=True)
    logits, labels = torch.randn(6, 9).to(dtype), torch.tensor([1, -100, 2, 3, 4, 8])
    torch.testing.assert_close(compiled(logits, labels)[0], reference(logits, labels, 0.01))


def test_a_gradient_in_half_precision_may_be_scaled_beyond_its_range():
    """As a GradScaler's first 65,536 is, which float16 does not hold."""
    logits = torch.randn(4, 9).half().requires_grad_()
    loss_sum, _ = cross_entropy(logits, torch.tensor([1, -100, 2, 3]))
    (65_536 * loss_sum).backward()
    twin = logits.detach().clone().requires_grad_()
    (65_536 * reference(twin, torch.tensor([1, -100, 2, 3]))).backward()
    torch.testing.assert_close(logits.grad, twin.grad, rtol=2e-3, atol=1.0)


@pytest.mark.parametrize(("logits", "labels"), [((2, 3, 4), (2, 3)), ((3, 4), (2,))])
def test_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"do not fit; give logits \(K, V\)"):
        cross_entropy(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize("levels", [3, 40, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hits_are_the_labels_that_are_likeliest(chunk, dtype, levels):
    """argmax takes the first of equal logits; with few levels most rows have several."""
    logits = (torch.randint(0, levels, (400, 7)) / levels).to(dtype)
    labels = torch.randint(0, 7, (400,))
    labels[::5] = -100
    expected = int((logits.argmax(-1) == labels).sum())
    for wants_grad in (True, False):
        _, num_correct = cross_entropy_with_hits(logits.requires_grad_(wants_grad), labels)
        assert int(num_correct) == expected > 30 and num_correct.dtype == torch.int64


def test_hits_of_a_certain_label():
    """A probability of one leaves the others none."""
    logits = torch.full((2, 5), -1e4)
    logits[:, 3] = 1e4
    assert int(cross_entropy_with_hits(logits, torch.tensor([3, 0]))[1]) == 1


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_in_the_place_of_the_logits_is_the_same(chunk, dtype, z_loss):
    hidden, table = torch.randn(23, 6), torch.randn(17, 6)
    labels = torch.randint(0, 17, (23,))
    labels[::5] = -100
    found = []
    for overwrite in (False, True):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, table)]
        logits = F.linear(*leaves)
        shown = logits.detach().clone()
        loss_sum, num_correct = cross_entropy_with_hits(logits, labels, z_loss=z_loss, overwrite=overwrite)
        (loss_sum / 3).backward()
        found.append([loss_sum.detach(), num_correct, *(leaf.grad for leaf in leaves)])
        assert torch.equal(logits, shown) != overwrite
    for plain, overwritten in zip(*found, strict=True):
        assert torch.equal(plain, overwritten)


def test_logits_that_were_overwritten_have_one_backward_pass():
    logits = 2 * torch.randn(3, 5, requires_grad=True)
    loss_sum, _ = cross_entropy_with_hits(logits, torch.tensor([1, 2, 3]), overwrite=True)
    (0.5 * loss_sum).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (0.5 * loss_sum).backward()


def test_logits_are_overwritten_for_a_gradient_only():
    logits = torch.randn(3, 5)
    shown = logits.clone()
    cross_entropy_with_hits(logits, torch.tensor([1, 2, 3]), overwrite=True)
    assert torch.equal(logits, shown)
