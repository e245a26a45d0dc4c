"""Preparing sequences that are ids already."""

import pytest
from stores import Ids, listed, pieces

from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer import tokenizer_for_ids
from mlm_pytorch.data.verify import verify_store


def test_sequences_of_ids(tokenizer, tmp_path):
    report = prepare(Ids([[7, 8, 9], "the cat", [8]]), tmp_path / "store", tokenizer=tokenizer, valid_share=0)
    assert pieces(tmp_path / "store") == [[7, 8, 9], *tokenizer.encode_batch(["the cat"]), [8]]
    assert (report.characters, report.bytes) == (7, 7)
    fifty = tokenizer_for_ids(50, mask_token_id=4, pad_token_id=0)
    report = prepare(
        Ids([[7, 8, 9], [7, 8, 9]]), tmp_path / "store", tokenizer=fifty, valid_share=0, drop_duplicates=True
    )
    assert pieces(tmp_path / "store") == [[7, 8, 9]]
    assert (report.tokenizer_kind, report.tokenizer.characters, report.tokenizer.used_entries) == ("ids", None, 3)
    assert verify_store(tmp_path / "store").tokens == 3


def test_of_ids_the_content_is_kept(tokenizer, tmp_path):
    special = tokenizer.special
    padded = [special.pad_token_id] * 3
    framed = [*special.prefix, 7, 8, special.pad_token_id, 9, *special.suffix]
    rows = Ids([framed + padded, padded + framed, [7, 8], padded, [*special.prefix, *special.suffix]])
    report = prepare(rows, tmp_path / "store", tokenizer=tokenizer, valid_share=0)
    assert pieces(tmp_path / "store") == [[7, 8, special.pad_token_id, 9]] * 2 + [[7, 8]]
    assert report.documents == 3


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([[7]], {}, r"ids holds token ids, and no tokenizer was given; give the tokenizer that made them, or --num-t"),
        ([[50]], {"ids": True}, r"holds token id 50, outside the vocabulary of 50"),
        ([[2**40]], {"ids": True}, r"the corpus holds token id 1099511627776, which no vocabulary has; check the"),
        ([[7]], {"ids": True, "vocab_size": 300}, r"vocab_size 300 is for training a tokenizer, but one was given"),
    ],
)
def test_wrong_ids(tmp_path, sequences, options, message):
    options = dict(options)
    if options.pop("ids", False):
        options["tokenizer"] = tokenizer_for_ids(50, mask_token_id=4, pad_token_id=0)
    with pytest.raises(ValueError, match=message):
        prepare(Ids(sequences), tmp_path / "store", **options)
    assert listed(tmp_path) == []
