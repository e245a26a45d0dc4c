"""The collator: what it masks, and how it pads."""

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from collating import (
    CLS,
    MASK,
    PAD,
    SEP,
    examples_of,
    make_tokenizer,
    make_wordpiece_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch import masking
from mlm_pytorch.huggingface import MLMCollator
from mlm_pytorch.tokens import IGNORE_INDEX


def originals(batch):
    """The batch before masking."""
    return torch.where(batch["labels"] == IGNORE_INDEX, batch["input_ids"], batch["labels"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.uint16)])
@pytest.mark.parametrize("bare", [False, True])
def test_pads_whatever_holds_ids(side, convert, bare):
    tokenizer = make_tokenizer(padding_side=side)
    rows = [row["input_ids"] for row in examples_of(4, 9)]
    examples = [convert(row) if bare else {"input_ids": convert(row)} for row in rows]
    batch = MLMCollator(tokenizer)(examples)
    filler = [PAD] * 5
    expected = [rows[0] + filler if side == "right" else filler + rows[0], rows[1]]
    assert originals(batch).tolist() == expected
    mask = [[1] * 4 + [0] * 5, [1] * 9]
    assert batch["attention_mask"].tolist() == [mask[0] if side == "right" else mask[0][::-1], mask[1]]
    assert all(value.dtype == torch.int64 for value in batch.values())


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([3, 4, 5], [3, 4, 5], torch.int64),
        ([3, True, 5], [3, 1, 5], torch.int64),
        ([True, False, True], [True, False, True], torch.bool),
        ([1, 2.5, 3], [1.0, 2.5, 3.0], torch.float32),
        ([1.5, 2, 3], [1.5, 2.0, 3.0], torch.float32),
        ([np.int16(3), 4, 5], [3, 4, 5], torch.int64),
        ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4], [5, 6]], torch.int64),
    ],
)
def test_lists_mean_what_numpy_takes_them_for(tokenizer, values, expected, dtype):
    batch = MLMCollator(tokenizer)([{"input_ids": [5, 6, 7], "field": values}])
    assert batch["field"].dtype == dtype
    assert batch["field"].tolist() == [expected]


def test_lists_of_more_than_integers_are_passed_on(tokenizer):
    fields = {"words": [1, "a", None], "large": [1, 2**70, 3]}
    batch = MLMCollator(tokenizer)([{"input_ids": [5, 6, 7], "large": fields["large"]}])
    assert batch["large"] == [fields["large"]]
    batch = MLMCollator(tokenizer)([{"input_ids": [5, 6, 7], "words": np.array(fields["words"], dtype=object)}])
    assert batch["words"] == [fields["words"]]


@pytest.mark.parametrize("ids", [[5, -1, 4], [5, 10**6, 4]])
def test_ids_that_the_tokenizer_does_not_know_are_not_special(tokenizer, ids):
    batch = MLMCollator(tokenizer, mlm_probability=1.0)([ids])
    known_special = [i in tokenizer.all_special_ids for i in ids]
    assert (batch["labels"][0] == IGNORE_INDEX).tolist() == known_special


def test_takes_and_gives_batch_encodings(tokenizer):
    examples = [tokenizer(text, return_special_tokens_mask=True) for text in ("w1 w2 w3", "w4")]
    assert isinstance(examples[0], transformers.BatchEncoding)
    batch = MLMCollator(tokenizer)(examples)
    assert isinstance(batch, transformers.BatchEncoding)
    assert batch.to("cpu")["input_ids"].shape == (2, 3)
    assert "special_tokens_mask" not in batch


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({}, 9),
        ({"padding": "longest"}, 9),
        ({"pad_to_multiple_of": 8}, 16),
        ({"pad_to_multiple_of": 3}, 9),
        ({"padding": "max_length", "max_length": 20}, 20),
        ({"padding": "max_length", "max_length": 20, "pad_to_multiple_of": 8}, 24),
    ],
)
def test_padded_length(tokenizer, arguments, length):
    batch = MLMCollator(tokenizer, **arguments)(examples_of(4, 9))
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(batch, (2, length))


def test_padding_false_stacks_equal_lengths(tokenizer):
    collator = MLMCollator(tokenizer, padding=False, pad_to_multiple_of=8)
    assert collator(examples_of(5, 5))["input_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="examples of 4 to 5 tokens make no batch without padding; set padding=True"):
        collator(examples_of(4, 5))


def test_no_padding_token_is_needed_without_padding():
    tokenizer = make_tokenizer(pad_token=None)
    assert MLMCollator(tokenizer)(examples_of(5, 5))["input_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="of 4 to 5 tokens need padding to 5, but the tokenizer has no padding"):
        MLMCollator(tokenizer)(examples_of(4, 5))


def test_other_fields(tokenizer):
    rows = examples_of(4, 6)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        row |= {
            "token_type_ids": [1] * length,
            "position_ids": np.arange(length),
            "weights": torch.full((length,), 0.5),
            "boxes": [[i, i, i + 1, i + 1] for i in range(length)],
            "next_sentence_label": index,
            "score": 0.25,
            "features": [1.0, 2.0, 3.0],
            "flag": True,
            "name": f"document {index}",
            "nothing": None,
            "labels": [7],
            "offset_mapping": [(0, 1)] * length,
        }
    batch = MLMCollator(tokenizer)(rows)
    assert batch["token_type_ids"].tolist() == [[1] * 4 + [0] * 2, [1] * 6]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert batch["weights"].dtype == torch.float32
    assert batch["weights"].tolist() == [[0.5] * 4 + [0.0] * 2, [0.5] * 6]
    assert batch["boxes"].shape == (2, 6, 4)
    assert batch["next_sentence_label"].tolist() == [0, 1]
    assert batch["score"].dtype == torch.float32
    assert batch["features"].shape == (2, 3)
    assert batch["flag"].dtype == torch.bool
    assert batch["name"] == ["document 0", "document 1"]
    assert batch["nothing"] == [None, None]
    assert batch["labels"].shape == (2, 6)
    assert "offset_mapping" not in batch


def test_examples_stay_as_they_were(tokenizer):
    for convert in (list, np.array, torch.tensor):
        examples = [{"input_ids": convert(row["input_ids"])} for row in examples_of(9, 9)]
        before = copy.deepcopy(examples)
        MLMCollator(tokenizer, mlm_probability=1.0)(examples)
        for now, then in zip(examples, before, strict=True):
            assert list(now["input_ids"]) == list(then["input_ids"])


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    percent=st.integers(0, 100),
    side=st.sampled_from(["left", "right"]),
    multiple=st.sampled_from([None, 8]),
)
def test_exactly_ceil_pn_and_nothing_else_is_touched(lengths, percent, side, multiple):
    tokenizer = make_tokenizer(padding_side=side)
    examples = examples_of(*lengths)
    collator = MLMCollator(tokenizer, mlm_probability=percent / 100, pad_to_multiple_of=multiple)
    batch = collator(examples)
    selected = batch["labels"] != IGNORE_INDEX
    assert selected.sum(-1).tolist() == [-(-percent * (length - 2) // 100) for length in lengths]
    assert not (selected & (originals(batch) < 5)).any()
    assert (batch["attention_mask"].sum(-1) == torch.tensor(lengths)).all()
    for row, mask, example in zip(originals(batch), batch["attention_mask"], examples, strict=True):
        assert row[mask.bool()].tolist() == example["input_ids"]
    shown = batch["input_ids"][selected]
    assert ((shown >= 5) | (shown == MASK)).all()


def test_shares_among_the_selected(tokenizer):
    batch = MLMCollator(tokenizer, mlm_probability=0.5, seed=0)(examples_of(*[500] * 40))
    selected = batch["labels"] != IGNORE_INDEX
    shown, wanted = batch["input_ids"][selected], batch["labels"][selected]
    n, itself = len(shown), 0.1 / 45  # a random draw may give the token itself
    shares = {"masked": 0.8, "kept": 0.1 + itself, "other": 0.1 - itself}
    flags = {"masked": shown == MASK, "kept": shown == wanted, "other": (shown != MASK) & (shown != wanted)}
    for kind, share in shares.items():
        assert abs(int(flags[kind].sum()) - share * n) < 5 * math.sqrt(n * share * (1 - share)), kind
    drawn = shown[(shown != MASK) & (shown != wanted)]
    assert drawn.min() == 5
    assert drawn.max() == 49


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.9, 0.1), (0.3, 0.7)])
def test_shares_at_the_edges(tokenizer, mask, random):
    batch = MLMCollator(tokenizer, mlm_probability=1.0, mask_replace_prob=mask, random_replace_prob=random)(
        examples_of(*[400] * 4)
    )
    selected = batch["labels"] != IGNORE_INDEX
    shown = batch["input_ids"][selected]
    masked = (shown == MASK).float().mean().item()
    assert masked == pytest.approx(mask, abs=0.05)
    if mask + random == 0:
        assert (shown == batch["labels"][selected]).all()


def test_special_tokens_mask_is_honoured_beside_the_special_tokens(tokenizer):
    rows = examples_of(8, 5)
    for row in rows:
        row["special_tokens_mask"] = [0] * len(row["input_ids"])  # not even [CLS] and [SEP]
    rows[0]["special_tokens_mask"][3] = 1
    batch = MLMCollator(tokenizer, mlm_probability=1.0)(rows)
    assert (batch["labels"] != IGNORE_INDEX).long().tolist() == [[0, 1, 1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0, 0]]


def test_zeros_of_a_given_attention_mask_are_padding(tokenizer):
    row = examples_of(6)[0] | {"attention_mask": [1, 1, 1, 0, 0, 1]}
    batch = MLMCollator(tokenizer, mlm_probability=1.0)([row])
    assert (batch["labels"] != IGNORE_INDEX).long().tolist() == [[0, 1, 1, 0, 0, 0]]


def test_added_special_tokens_are_special():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([transformers.AddedToken("<speaker>", special=True)])
    speaker = tokenizer.convert_tokens_to_ids("<speaker>")
    batch = MLMCollator(tokenizer, mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=1.0)(
        [[CLS, *[speaker] * 50, *range(5, 50), SEP]] * 20
    )
    selected = batch["labels"] != IGNORE_INDEX
    assert selected.sum(-1).tolist() == [45] * 20
    assert (batch["input_ids"][selected] != speaker).all()


def test_rows_without_anything_to_mask(tokenizer):
    batch = MLMCollator(tokenizer)([[CLS, SEP], [], [CLS, 7, SEP]])
    assert (batch["labels"] != IGNORE_INDEX).sum(-1).tolist() == [0, 0, 1]
    assert batch["labels"][2, 1] == 7


def test_a_selection_of_ones_own(tokenizer):
    def every_second(scores, input_ids, maskable, mask_prob):
        assert mask_prob == 150_000
        return maskable & (torch.arange(input_ids.shape[-1]) % 2 == 0)

    batch = MLMCollator(tokenizer, selection=every_second)(examples_of(7))
    assert (batch["labels"] != IGNORE_INDEX).long().tolist() == [[0, 0, 1, 0, 1, 0, 0]]


@pytest.mark.parametrize("arguments", [{"whole_word_mask": True}, {"selection": "words"}, {"selection": "ngrams"}])
def test_whole_words(arguments):
    tokenizer = make_wordpiece_tokenizer()
    ids = [CLS, 5, 6, 7, 8, 9, 10, 5, 6, 7, SEP]  # unbelievable playing go unbelievable
    words = [-1, 0, 0, 0, 1, 1, 2, 3, 3, 3, -1]
    collator = MLMCollator(tokenizer, mlm_probability=0.4, seed=1, **arguments)
    kinds = set()
    for _ in range(50):
        batch = collator([ids])
        selected = (batch["labels"][0] != IGNORE_INDEX).tolist()
        chosen = {word for word, flag in zip(words, selected, strict=True) if flag}
        assert chosen
        assert -1 not in chosen
        assert selected == [word in chosen for word in words]
        kinds |= set(batch["input_ids"][0][batch["labels"][0] != IGNORE_INDEX].tolist())
    assert MASK in kinds
    assert len(kinds) > 1  # whole words have random and kept tokens too


def test_spans(tokenizer):
    batch = MLMCollator(tokenizer, mlm_probability=0.2, selection="spans", seed=1)(examples_of(*[202] * 20))
    selected = batch["labels"] != IGNORE_INDEX
    starts = selected & ~selected.roll(1, -1)
    assert (selected.sum(-1) <= 40).all()
    assert selected.sum() / starts.sum() > 2  # tokens alone would make runs of 1.25


def test_selections_are_those_of_masking(tokenizer):
    examples = examples_of(40, 25)
    for name in ("tokens", "spans"):
        by_name = MLMCollator(tokenizer, seed=3, selection=name)(examples)
        by_function = MLMCollator(tokenizer, seed=3, selection=getattr(masking, f"select_{name}"))(examples)
        assert torch.equal(by_name["labels"], by_function["labels"])


def test_numpy_gives_the_same_masks(tokenizer):
    examples = examples_of(50, 30)
    tensors = MLMCollator(tokenizer, seed=7)(examples)
    for arrays in (
        MLMCollator(tokenizer, seed=7, return_tensors="np")(examples),
        MLMCollator(tokenizer, seed=7)(examples, return_tensors="np"),
    ):
        assert arrays.keys() == tensors.keys()
        for name, value in arrays.items():
            assert isinstance(value, np.ndarray)
            assert np.array_equal(value, tensors[name].numpy())
