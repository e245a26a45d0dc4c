"""Cutting documents: every rule against loops over tokens."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data.pieces import Cutting, cut
from mlm_pytorch.tokens import SpecialTokens

SPECIAL = SpecialTokens(100, mask_token_id=4, pad_token_id=0, ids=(0, 1, 2, 3, 4), prefix=(2,), suffix=(3,))


def slow_cut(ids, max_piece, rule, overlap):
    if rule == "truncate":
        return [ids[:max_piece]]
    pieces, start = [ids[:max_piece]], 0
    while start + max_piece < len(ids):
        start += max_piece - overlap
        pieces.append(ids[start : start + max_piece])
    return pieces


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    max_piece=st.integers(2, 60),
    rule=st.sampled_from(["split", "windows", "truncate"]),
    data=st.data(),
)
def test_cut(lengths, max_piece, rule, data):
    overlap = data.draw(st.integers(1, max_piece - 1)) if rule == "windows" else 0
    documents = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    expected = [
        (number, piece.tolist())
        for number, ids in enumerate(documents)
        for piece in slow_cut(ids, max_piece, rule, overlap)
    ]
    pieces = cut(np.array(lengths), max_piece, rule, overlap)
    stored = np.split(pieces.take(np.arange(sum(lengths))), np.cumsum(pieces.lengths)[:-1])
    assert list(zip(pieces.of_document.tolist(), [piece.tolist() for piece in stored], strict=True)) == expected
    assert pieces.starts.tolist() == [piece[0] for _, piece in expected]
    tokens = [token for _, piece in expected for token in piece]
    assert pieces.cut_documents == sum(length > max_piece for length in lengths)
    assert pieces.dropped_tokens == sum(lengths) - len(set(tokens))
    assert pieces.repeated_tokens == len(tokens) - len(set(tokens))
    for (first, before), (second, after) in pairwise(expected):
        if first == second:  # neighbours share exactly so many tokens, and the last holds new ones
            assert before[len(before) - overlap :] == after[:overlap]
            assert len(after) > overlap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((10, "crop"), r"long_documents 'crop' is unknown; choose split, windows or truncate"),
        ((10, "split", 2), r"overlap 2 is for long_documents 'windows', at least 0; with 'split' leave it out"),
        ((10, "windows", -1), r"overlap -1 is for long_documents 'windows', at least 0"),
        ((10, "windows"), r"windows need an overlap of at least 1 token; choose one, or long_documents 'split'"),
        ((10, "windows", 8), r"overlap 8 is not below the 8 tokens that a piece of seq_len 10 has room for"),
        ((2,), r"seq_len 2 leaves no room beside the 2 tokens that frame a piece; choose a larger one"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Cutting(*options).max_piece(SPECIAL)
