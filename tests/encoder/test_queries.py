"""Attention of some tokens equals that of all of them, at these tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlm_pytorch.encoder import Encoder, EncoderConfig, queries
from mlm_pytorch.encoder.blocks import LONGEST_KEPT, BlockPlan, Blocks, attend_blocks
from mlm_pytorch.encoder.queries import Queries, attend_queries

HEADS, HEAD_DIM = 2, 8


def plan_of(lengths: list[int], window: int | None = None) -> tuple[BlockPlan, torch.Tensor]:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    return BlockPlan.of(Blocks.of(cu_seqlens, HEADS), 1e4, HEAD_DIM, torch.float64, window), cu_seqlens


@given(st.lists(st.integers(0, 150), min_size=1, max_size=8).filter(sum), st.floats(0, 0.5), st.integers(0, 2**16))
def test_values_and_gradients_equal_those_of_all(lengths, share, seed):
    torch.manual_seed(seed)
    plan, cu_seqlens = plan_of(lengths)
    num_tokens = sum(lengths)
    # any order, some more than once, and pieces where nobody asks
    positions = torch.randint(num_tokens, (max(1, int(share * num_tokens)),)).sort(descending=bool(seed % 2)).values
    made = Queries.of(plan, cu_seqlens, positions)
    if len(positions) > num_tokens / 2:
        assert made is None
        return
    assert made is not None
    qkv = torch.randn(num_tokens, 3, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(positions), HEADS * HEAD_DIM, dtype=torch.float64)
    found = []
    for some in (attend_queries(qkv[positions, 0], qkv[:, 1:], made), attend_blocks(qkv, plan)[positions]):
        qkv.grad = None
        (some * weight).sum().backward()
        found.append((some.detach(), qkv.grad))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)  # angles are float32


def test_a_neighbour_is_not_asked_even_where_it_is_not_a_number():
    lengths = [20, 25, 30, 4]  # three of one bucket
    plan, cu_seqlens = plan_of(lengths)
    assert len(plan.blocks.buckets) == 2
    qkv = torch.randn(79, 3, HEADS, HEAD_DIM, dtype=torch.float64)
    qkv[20:45] = float("nan")
    qkv.requires_grad_()
    positions = torch.tensor([3, 19, 25, 50, 77])
    others = torch.tensor([0, 1, 3, 4])
    some = attend_queries(qkv[positions, 0], qkv[:, 1:], Queries.of(plan, cu_seqlens, positions))
    assert some[others].isfinite().all() and some[2].isnan().all()
    some[others].sum().backward()
    assert qkv.grad[:20].isfinite().all() and qkv.grad[45:].isfinite().all()
    assert qkv.grad[45:75].abs().sum() > 0


@pytest.mark.parametrize(
    ("lengths", "window", "count"),
    [([40, 9], 4, 5), ([40, 9], None, 25), ([LONGEST_KEPT + 1], None, 5), ([40, 9], None, 0)],
    ids=["window", "most of them", "long", "none"],
)
def test_where_all_had_better_ask(lengths, window, count):
    plan, cu_seqlens = plan_of(lengths, window)
    assert Queries.of(plan, cu_seqlens, torch.arange(count)) is None


def encoder() -> tuple[Encoder, torch.Tensor, dict]:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        global_attn_every_n_layers=1, attention_bias=True,
    )  # fmt: skip
    ids = torch.randint(4, 64, (60,))
    return Encoder(config), ids, {"cu_seqlens": torch.tensor([0, 31, 60]), "positions": torch.tensor([2, 30, 45])}


def test_a_model_takes_this_way_and_scores_and_gradients_stay(monkeypatch):
    model, ids, layout = encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    calls, found = [], []

    def counted(*parts, **of_pack):
        calls.append(1)
        return attend_queries(*parts, **of_pack)

    monkeypatch.setattr("mlm_pytorch.encoder.encoder.attend_queries", counted)
    for largest_share in (queries.LARGEST_SHARE, 0.0):
        monkeypatch.setattr(queries, "LARGEST_SHARE", largest_share)
        model.zero_grad()
        logits = model(ids, **layout)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert len(calls) == 1
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


class Adapted(nn.Module):
    """An adapter around a projection, that lets its weight be seen."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 0.3 * x.repeat(1, 3)


@pytest.mark.parametrize("how", ["adapter", "hook", "pre-hook", "own forward"])
def test_what_was_put_around_the_projection_is_not_passed_by(how):
    model, ids, layout = encoder()
    attn = model.model.layers[-1].attn
    plain = model(ids, **layout)
    if how == "adapter":
        attn.Wqkv = Adapted(attn.Wqkv)
    elif how == "hook":
        attn.Wqkv.register_forward_hook(lambda module, args, out: out + 0.3 * args[0].repeat(1, 3))
    elif how == "own forward":
        attn.Wqkv.forward = lambda x, usual=attn.Wqkv.forward: usual(x) + 0.3 * x.repeat(1, 3)
    else:
        attn.Wqkv.register_forward_pre_hook(lambda module, args: (args[0] * 3 + 1,))
    changed = model(ids, **layout)
    everywhere = model(ids, cu_seqlens=layout["cu_seqlens"])[layout["positions"]]
    torch.testing.assert_close(changed, everywhere, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed, plain, atol=1e-5)


def test_a_hook_on_the_projections_gradient_is_called():
    model, ids, layout = encoder()
    seen = []
    model.model.layers[-1].attn.Wqkv.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    model(ids, **layout).sum().backward()
    assert seen == [(60, 96)]
