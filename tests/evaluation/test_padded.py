"""A padded model behind the face of a flat one: the same as each piece by itself."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from list_store import SPECIAL as LIST_SPECIAL
from list_store import ListStore
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.evaluation import PaddedModel, masked_loss
from mlm_pytorch.evaluation.padded import MOST_PADDING, blocks_of_like_length
from mlm_pytorch.tokens import SpecialTokens

SPECIAL = SpecialTokens(60, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=60, max_position_embeddings=40, initializer_range=0.3, **SIZE)).eval()


class NoHead(nn.Module):
    """Logits that no module makes by itself."""

    def __init__(self):
        super().__init__()
        self.bert = bert()

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids, attention_mask=attention_mask).logits.cumsum(1)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), model=st.sampled_from([bert(), NoHead()]))
def test_flat_packs_equal_each_piece_alone(lengths, model):
    padded = PaddedModel(model, SPECIAL, 40)
    assert (padded.head is None) == isinstance(model, NoHead)
    cu = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(5, 60, (int(cu[-1]),))
    with torch.no_grad():
        alone = []
        for start, end in pairwise(cu.tolist()):
            row = ids[None, start:end]
            out = model(row, attention_mask=torch.ones_like(row))
            alone.append(getattr(out, "logits", out)[0])
        expected = torch.cat(alone)
        torch.testing.assert_close(padded(ids, cu_seqlens=cu), expected, atol=1e-4, rtol=1e-4)
        wanted = torch.randperm(len(ids))[:3]
        got = padded.logits_at(wanted, ids, cu_seqlens=cu)
        torch.testing.assert_close(got, expected[wanted], atol=1e-4, rtol=1e-4)


def test_hidden_states_are_the_trunks():
    model, ids = bert(), torch.randint(5, 60, (12,))
    states = PaddedModel(model, SPECIAL, 40).hidden_states(ids, cu_seqlens=torch.tensor([0, 4, 12]))
    expected = torch.cat([model.bert(ids[None, a:b]).last_hidden_state[0] for a, b in ((0, 4), (4, 12))])
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(0, 50), max_size=30))
def test_blocks_hold_every_row_once_and_little_padding(lengths):
    blocks = blocks_of_like_length(lengths)
    assert sorted(i for block in blocks for i in block) == [i for i, length in enumerate(lengths) if length]
    for block in blocks:
        longest = max(lengths[i] for i in block)
        assert longest * len(block) - sum(lengths[i] for i in block) <= MOST_PADDING * longest * len(block)


def test_errors():
    padded = PaddedModel(bert(), SPECIAL, 10)
    with pytest.raises(ValueError, match="a piece of 11 tokens exceeds max_position_embeddings 10"):
        padded(torch.ones(11, dtype=torch.int64), cu_seqlens=torch.tensor([0, 11]))
    with pytest.raises(ValueError, match="name a masked language model with its own tokenizer"):
        PaddedModel(Narrow(), SPECIAL)
    with pytest.raises(ValueError, match="Narrow fails on 16 ids of a vocabulary of .*; give its embeddings a row for"):
        PaddedModel(Narrow(rows=6), SPECIAL)
    whole = r"ThreeAtOnce fails on 16 ids .*\(RuntimeError: .*, test_padded.py line \d+\); it has to take rows of"
    with pytest.raises(ValueError, match=whole):
        PaddedModel(ThreeAtOnce(), SPECIAL)
    with pytest.raises(ValueError, match="holds no token to predict"):
        masked_loss(padded, [], SPECIAL)


class Narrow(nn.Module):
    def __init__(self, rows=60):
        super().__init__()
        self.table = nn.Embedding(rows, 7)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)


class ThreeAtOnce(Narrow):
    """Takes ids by threes alone, as Nystromformer does."""

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids.view(-1, 3))


class Dropping(nn.Module):
    """With a trunk that its user keeps out of training, and a mask that has no default."""

    def __init__(self):
        super().__init__()
        self.trunk, self.drop, self.to_logits = nn.Embedding(64, 8), nn.Dropout(0.5), nn.Linear(8, 64)
        self.trunk.eval()

    def forward(self, input_ids, mask):
        return self.to_logits(self.drop(self.trunk(input_ids)) * mask[..., None])


def test_modes_are_left_as_they_were():
    model = Dropping()
    padded = PaddedModel(model, SPECIAL)
    ids = torch.randint(5, 60, (2, 12))
    for _ in range(2):
        assert padded.training and model.training and model.drop.training and not model.trunk.training
        assert not torch.equal(padded(ids), padded(ids)), "dropout"
        masked_loss(padded, sequential_packs(ListStore([5, 9]), 32), LIST_SPECIAL)
    padded.eval()
    assert torch.equal(padded(ids), padded(ids))


def test_a_mask_without_a_default_is_given_where_nothing_is_padding():
    model = Dropping().eval()
    padded, ids = PaddedModel(model, SPECIAL), torch.randint(5, 60, (2, 12))
    torch.testing.assert_close(padded(ids), model(ids, torch.ones_like(ids, dtype=torch.bool)))
