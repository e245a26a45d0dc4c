"""Transformers of every kind that people bring."""

import warnings

import pytest
import torch
from torch import nn

V = 61  # vocabulary


def x_transformer(*, encoder=None, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts functions when imported, which torch deprecates
        from x_transformers import Encoder, TransformerWrapper
    layers = Encoder(dim=32, depth=2, heads=2, attn_dim_head=16, **(encoder or {}))
    return TransformerWrapper(num_tokens=V, max_seq_len=64, attn_layers=layers, **kwargs)


def bert(**kwargs):
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(vocab_size=V, max_position_embeddings=64, **shape, **kwargs))


class Plain(nn.Module):
    """An encoder as people write it."""

    def __init__(self, width=32, vocabulary=V):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(64, width))
        layer = nn.TransformerEncoderLayer(width, 2, 48, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids, src_key_padding_mask=None):
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        return self.out(self.norm(self.layers(x, src_key_padding_mask=src_key_padding_mask)))


KINDS = {
    "x-transformers": x_transformer,
    "x-transformers tied": lambda: x_transformer(tie_embedding=True),
    "x-transformers own head": lambda: x_transformer(
        to_logits=nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, V))
    ),
    "BERT": lambda: bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "plain": Plain,
}


@pytest.fixture(params=KINDS)
def transformer(request):
    """One small transformer of each kind, without dropout."""
    return KINDS[request.param]()


@pytest.fixture
def plain():
    return Plain()


@pytest.fixture
def make_plain():
    return Plain


@pytest.fixture
def make_x_transformer():
    return x_transformer


@pytest.fixture
def make_bert():
    return bert


@pytest.fixture
def ids():
    """(4, 24) ids, the last rows padded on the right and on the left."""
    ids = torch.randint(3, V, (4, 24), generator=torch.Generator().manual_seed(0))
    ids[2, 15:] = 0
    ids[3, :9] = 0
    return ids
