"""SpecialTokens and WordTable as records; deriving a table from a tokenizer is tested in masking/test_words.py."""

import numpy as np
import pytest
import torch

from mlm_pytorch.tokens import ALONE, INSIDE, SpecialTokens, WordTable


def special(**changes):
    fields = {"num_tokens": 10, "mask_token_id": 4, "pad_token_id": 0, "ids": (0, 1, 2, 3, 4)}
    return SpecialTokens(**(fields | changes))


def test_tables_divide_the_vocabulary():
    tokens = special(ids=(0, 2, 4, 9))
    flags, drawable = tokens.is_special(), tokens.drawable_ids()
    assert flags.shape == (10,) and flags.dtype == torch.bool and flags.nonzero().flatten().tolist() == [0, 2, 4, 9]
    assert drawable.dtype == torch.int64 and drawable.tolist() == [1, 3, 5, 6, 7, 8]


def test_every_id_may_be_special():
    assert special(num_tokens=5).drawable_ids().tolist() == []


def test_lists_become_tuples_and_the_record_is_hashable():
    tokens = special(ids=[0, 1, 2, 3, 4], prefix=[2], suffix=[3])
    assert tokens.prefix == (2,) and hash(tokens) == hash(special(prefix=(2,), suffix=(3,)))


@pytest.mark.parametrize(
    ("ids", "content"),
    [
        ([5, 6], [5, 6]),
        ([2, 5, 6, 3], [5, 6]),
        ([0, 0, 2, 5, 0, 6, 3, 0], [5, 0, 6]),
        ([5, 3], [5]),
        ([3, 5, 2], [3, 5, 2]),
        ([2, 3], []),
        ([0, 0], []),
        ([], []),
    ],
)
def test_content_of_a_sequence_that_was_framed_and_padded(ids, content):
    row = np.array(ids, np.int64)
    assert special(prefix=(2,), suffix=(3,)).content(row).tolist() == content
    assert special().content(np.array([2, 5, 3, 0])).tolist() == [2, 5, 3]
    assert row.tolist() == ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 0}, "num_tokens 0 is not positive"),
        ({"ids": (0, 4, 3)}, "must be sorted"),
        ({"ids": (0, 4, 4)}, "without repeats"),
        ({"ids": (0, 4, 10)}, r"special ids \[10\] lie outside the vocabulary of 10"),
        ({"ids": (-1, 0, 4)}, r"special ids \[-1\] lie outside"),
        ({"mask_token_id": 7}, r"mask_token_id \[7\] is not among"),
        ({"pad_token_id": 7}, r"pad_token_id \[7\] is not among"),
        ({"prefix": (8,)}, r"prefix \[8\] is not among"),
        ({"suffix": (3, 8)}, r"suffix \[8\] is not among"),
    ],
)
def test_bad_special_tokens(changes, message):
    with pytest.raises(ValueError, match=message):
        special(**changes)


def test_words_from_starts_in_both_layouts():
    words = WordTable.from_starts([True, False, True])
    ids = torch.tensor([[1, 1, 0, 1], [2, 2, 1, 0]])
    expected = [[True, False, True, False], [True, True, False, True]]
    assert words.starts_word(ids).tolist() == expected
    flat = words.starts_word(ids.flatten(), cu_seqlens=torch.tensor([0, 0, 4, 8, 8]))
    assert flat.tolist() == expected[0] + expected[1]


def test_alone_parts_from_both_sides_and_inside_from_none():
    right, left = torch.tensor([ALONE, 2, 2]), torch.tensor([ALONE, 2, INSIDE])
    words = WordTable.from_classes(right, left, torch.zeros(3, 3, dtype=torch.bool))
    assert words.starts_word(torch.tensor([[1, 1, 0, 1, 2, 0, 2, 2]])).tolist() == [
        [True, False, True, True, False, True, True, False]
    ]


def test_a_table_moves_and_keeps_its_answers():
    words = WordTable.from_starts([True, False])
    ids = torch.tensor([[0, 1, 1]])
    assert words.to("cpu").starts_word(ids).equal(words.starts_word(ids))
    assert words.num_tokens == 2


def test_bad_word_tables():
    words = WordTable.from_starts([True, False])
    with pytest.raises(ValueError, match=r"ids 0..2 leave the WordTable's vocabulary of 2"):
        words.starts_word(torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match=r"ids -1..0 leave"):
        words.starts_word(torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match=r"call words.to\(device\)"):
        words.starts_word(torch.empty(1, 2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="exceeds 256 classes"):
        WordTable.from_classes(torch.zeros(1), torch.zeros(1), torch.ones(300, 3, dtype=torch.bool))
