"""Rows are masked as flat packs are, piece by piece."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore
from torch import nn

from mlm_pytorch.data.packing import build_pack
from mlm_pytorch.data.padding import build_padded
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.objective.padded import inspect_rows, mask_padded


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(0, 99), st.integers(1, 900_000))
def test_rows_have_the_masks_of_the_flat_layout(lengths, seed, rate):
    store = ListStore(lengths)
    pieces, visits = np.arange(len(lengths)), np.arange(len(lengths)) % 3
    masker = PackMasker(SPECIAL, seed, replace_prob=0.9, random_token_prob=0.1)
    rows = build_padded(store, pieces, visits, 4096)
    masked = mask_padded(masker, rows, rate)
    assert masked.attention_mask.sum() == masked.num_tokens == sum(lengths) + 2 * len(lengths)
    assert (masked.input_ids[~masked.attention_mask] == SPECIAL.pad_token_id).all()
    labels = torch.full(rows.input_ids.shape, -100)
    labels.view(-1)[masked.positions] = masked.labels
    assert masked.num_targets == (labels != -100).sum()
    for row, (piece, length) in enumerate(zip(rows.pieces.tolist(), rows.lengths.tolist(), strict=True)):
        alone = masker(build_pack(store, np.array([piece]), np.array([piece % 3])), rate)
        assert masked.input_ids[row, :length].tolist() == alone.input_ids.tolist()
        assert (labels[row] != -100).nonzero().squeeze(1).tolist() == alone.positions.tolist()
        assert labels[row][alone.positions].tolist() == alone.labels.tolist()


def test_rows_are_moved_as_a_whole():
    masked = mask_padded(
        PackMasker(SPECIAL, 0), build_padded(ListStore([3, 9]), np.arange(2), np.zeros(2, int), 32), 300_000
    )
    assert masked.to(torch.device("cpu")) is masked
    moved = masked.to(torch.device("meta"))
    for name in ("input_ids", "attention_mask", "positions", "labels"):
        here, there = getattr(masked, name), getattr(moved, name)
        assert there.is_meta and (there.shape, there.dtype) == (here.shape, here.dtype)
    assert moved.num_tokens == masked.num_tokens


class Summing(nn.Module):
    """Adds to each token the sum of those that the mask shows: True at tokens, or at padding where it is `inverted`."""

    def __init__(self, inverted: bool):
        super().__init__()
        self.table, self.head, self.inverted = nn.Embedding(100, 8), nn.Linear(8, 100), inverted

    def forward(self, ids, mask=None):
        x = self.table(ids)
        shown = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask ^ self.inverted
        return self.head(x + (x * shown[..., None]).sum(1, keepdim=True))


@pytest.mark.parametrize("inverted", [False, True])
def test_a_mask_the_wrong_way_round_is_found(inverted):
    found = inspect_rows(Summing(inverted), SPECIAL)
    assert found.mask_argument == "mask" and found.sees_padding is inverted


def test_rows_without_a_target():
    store = ListStore([3])
    masked = mask_padded(PackMasker(SPECIAL, 0), build_padded(store, np.array([0]), np.array([0]), 8), 0)
    assert masked.num_targets == 0 and masked.input_ids.shape == (1, 8)
