import warnings

import pytest
import torch
from torch import nn

from mlm_pytorch.objective import MLM
from mlm_pytorch.objective.padded import inspect_rows
from mlm_pytorch.objective.verify import verify_head
from mlm_pytorch.tokens import SpecialTokens

V, L = 61, 24


class Own(nn.Module):
    """An encoder as people write it, with a mistake that raises nothing."""

    def __init__(self, mistake=""):
        super().__init__()
        self.tokens, self.out = nn.Embedding(V, 16), nn.Linear(16, V)
        self.positions = None if mistake == "order" else nn.Parameter(torch.randn(64, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=mistake != "rows")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.mistake = mistake

    def forward(self, ids, mask=None):
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions[: ids.shape[1]]
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1) if self.mistake == "right" else None
        padding = None if mask is None or self.mistake == "rows" else ~mask
        return self.out(self.layers(x, mask=causal, src_key_padding_mask=padding))


SAID = {
    "": [],
    "rows": ["rows of a batch see each other in Own: the logits of one change with the ids of another"],
    "right": ["no position of Own sees what follows it, as in a decoder, so masks are filled from what stands"],
    "order": ["Own takes no notice of order: shuffled tokens around a mask give the same logits; add posi"],
}


@pytest.fixture
def ids():
    return torch.randint(3, V, (4, L), generator=torch.Generator().manual_seed(0))


def begins(oddities):
    return [oddity[:80] for oddity in oddities]


@pytest.mark.parametrize("mistake", SAID)
def test_what_raises_no_error_is_said_once(mistake, ids):
    mlm = MLM(Own(mistake))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mlm(ids)
        mlm(ids)
    assert begins(str(warning.message) for warning in caught) == begins(SAID[mistake])


@pytest.mark.parametrize("mistake", SAID)
def test_of_a_module_that_is_trained_by_the_command(mistake):
    found = inspect_rows(Own(mistake), SpecialTokens(V, 2, 0, (0, 2)))
    assert begins(found.oddities) == begins(SAID[mistake])


@pytest.mark.parametrize(
    ("mistake", "padding"),
    [
        (mistake, padding)
        for mistake in SAID
        for padding in (slice(7, None), slice(None, 17), slice(10, 14))
        if (mistake, padding.start) != ("right", None)  # where the first rows see nothing, and are NaN
    ],
)
def test_padding_hides_nothing_and_shows_nothing(mistake, padding, ids):
    """What is masked out moves no logits, on either side; that must not pass for a model that looks one way."""
    ids[:2, padding] = 0
    arguments = {} if mistake == "rows" else {"mask": ids != 0}
    assert begins(verify_head(Own(mistake), ids, arguments, pad_token_id=0).oddities) == begins(SAID[mistake])


@pytest.mark.parametrize("blocks", [2, 4, 8, 12])
def test_attention_in_blocks_looks_both_ways(blocks, ids):
    class InBlocks(Own):
        def forward(self, ids, mask=None):
            x = (self.tokens(ids) + self.positions[:L]).view(len(ids) * blocks, L // blocks, 16)
            return self.out(self.layers(x).view(*ids.shape, 16))

    assert verify_head(InBlocks(), ids, {}).oddities == ()


def test_too_little_to_tell(ids):
    class Alone(nn.Module):
        """Sees nothing but each token itself."""

        def __init__(self):
            super().__init__()
            self.tokens, self.out = nn.Embedding(V, 16), nn.Linear(16, V)

        def forward(self, ids):
            return self.out(self.tokens(ids))

    assert verify_head(Alone(), ids, {}).oddities == ()
    assert verify_head(Own("right"), ids[:1], {}).oddities == ()
    ids[1, 3:] = 0
    assert verify_head(Own("right"), ids, {}, pad_token_id=0).oddities == ()


def test_known_encoders_are_not_odd(transformer, ids):
    assert verify_head(transformer, ids, {}).oddities == ()


def test_a_decoder_of_x_transformers(ids):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16)
    model = TransformerWrapper(num_tokens=V, max_seq_len=64, attn_layers=layers)
    (said,) = verify_head(model, ids, {}).oddities
    assert said.startswith("no position of TransformerWrapper sees what follows it")
