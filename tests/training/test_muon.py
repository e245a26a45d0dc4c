import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlm_pytorch.training.muon import Muon, orthogonalize


def test_orthogonalize_keeps_the_directions_and_levels_the_sizes():
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40) @ torch.diag(torch.logspace(0, -1, 40))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    got = orthogonalize(matrices).float()
    leveled = torch.linalg.diagonal(u.mT @ got @ v.mT)
    assert (leveled > 0.5).all() and (leveled < 1.4).all()
    rest = u.mT @ got @ v.mT - torch.diag_embed(leveled)
    assert rest.abs().max() < 0.1


class Products(TorchDispatchMode):
    """Notes the type of each matrix product."""

    def __init__(self):
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "mm" in str(func):
            self.types.append(out.dtype)
        return out


@pytest.mark.parametrize("native", [torch.bfloat16, None])
def test_products_are_bfloat16_only_where_the_hardware_multiplies_it(native, monkeypatch):
    monkeypatch.setattr("mlm_pytorch.training.muon.native_precision", lambda device: native)
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40)
    with Products() as products:
        got = orthogonalize(matrices)
    assert set(products.types) == {native or torch.float32}
    assert got.dtype is torch.bfloat16  # what processes send each other is the same everywhere
    monkeypatch.setattr("mlm_pytorch.training.muon.native_precision", lambda device: None)
    torch.testing.assert_close(got.float(), orthogonalize(matrices).float(), atol=0.03, rtol=0.05)


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 40)])
def test_equals_torch_muon(shape):
    """Within a few roundings of a bfloat16 of all that the steps did; a mean of 0.9 for 0.95 is 4% from it."""
    torch.manual_seed(0)
    start = torch.randn(2, *shape)
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    mine = Muon([{"params": ours}], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(shape)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - before).norm()


def test_parts_are_stepped_as_matrices_of_their_own():
    torch.manual_seed(0)
    whole = nn.Parameter(torch.zeros(48, 16))
    parts = [nn.Parameter(torch.zeros(16, 8)) for _ in range(6)]
    whole.grad = torch.randn(48, 16)
    for i, part in enumerate(parts):
        down, across = divmod(i, 2)
        part.grad = whole.grad[16 * down : 16 * (down + 1), 8 * across : 8 * (across + 1)].clone()
    Muon([{"params": [whole], "parts": (3, 2)}], lr=0.1).step()
    Muon([{"params": parts}], lr=0.1).step()
    assert torch.equal(whole, torch.cat([torch.cat(row, dim=1) for row in zip(parts[::2], parts[1::2], strict=True)]))


def test_parameters_without_a_gradient_stay():
    still = nn.Parameter(torch.ones(4, 4))
    Muon([{"params": [still]}], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(4, 4))


@pytest.mark.parametrize(("shape", "parts"), [((4,), (1, 1)), ((4, 4, 4), (1, 1)), ((4, 4), (3, 1)), ((4, 4), (1, 3))])
def test_what_is_no_matrix_is_refused(shape, parts):
    with pytest.raises(ValueError, match=r"does not fall into \d x \d matrices; give it to another optimizer"):
        Muon([{"params": [nn.Parameter(torch.ones(shape))], "parts": parts}], lr=0.1)
