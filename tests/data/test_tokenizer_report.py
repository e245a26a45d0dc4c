"""What a tokenizer makes of a corpus: counts in batches are the counts of the whole."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data.tokenizer import TokenCounter, tokenizer_for_ids, tokenizer_report, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog", "", "the dog sat; ☃ did not"] * 30


def test_a_report():
    tokenizer = train_tokenizer(["abc ab"], kind="characters")
    report = tokenizer_report(tokenizer, iter(["ab c", "☃c", "", "bbbbbb bb"]))
    assert (report.documents, report.tokens, report.characters, report.words) == (4, 15, 15, 5)
    assert (report.characters_per_token, report.tokens_per_word) == (1.0, 3.0)
    assert (report.unknown_tokens, report.unknown_rate) == (1, 1 / 15)
    assert report.longest_documents == (9, 4, 2, 0)
    assert (report.used_entries, report.entries, report.used_share) == (4, 4, 1.0)


def test_a_report_of_ids():
    special = tokenizer_for_ids(50, mask_token_id=1, pad_token_id=0).special
    counter = TokenCounter(special)
    counter.add(np.array([7, 8, 7, 1], dtype=np.uint16), np.array([3, 1]))
    report = counter.report()
    assert (report.characters, report.words, report.characters_per_token, report.tokens_per_word) == (None,) * 4
    assert (report.tokens, report.unknown_rate, report.used_entries, report.entries) == (4, 0.0, 2, 48)


def test_a_report_of_nothing():
    report = TokenCounter(train_tokenizer([], kind="bytes").special, 1).report()
    assert (report.tokens, report.characters_per_token, report.tokens_per_word) == (0, None, None)
    assert (report.unknown_rate, report.used_share, report.longest_documents) == (0.0, 0.0, ())


@given(cuts=st.lists(st.integers(0, len(TEXTS)), max_size=6), counted=st.lists(st.booleans(), min_size=8, max_size=8))
def test_batches_add_up(cuts, counted):
    tokenizer = train_tokenizer([], kind="bytes")
    whole = tokenizer_report(tokenizer, TEXTS)
    counter = TokenCounter(tokenizer.special, tokenizer.unknown_id)
    places = [0, *sorted(cuts), len(TEXTS)]
    words = tokens = 0
    for start, end, count in zip(places, places[1:], counted, strict=False):
        batch = TEXTS[start:end]
        ids, lengths = tokenizer.encode_arrays(batch)
        batch_words = sum(len(text.split()) for text in batch)
        counter.add(ids, lengths, sum(map(len, batch)), batch_words if count else None)
        words, tokens = (words + batch_words, tokens + len(ids)) if count else (words, tokens)
        counter = pickle.loads(pickle.dumps(counter))
    report = counter.report()
    for name in ("documents", "tokens", "characters", "unknown_tokens", "longest_documents", "used_entries", "entries"):
        assert getattr(report, name) == getattr(whole, name)
    assert report.tokens_per_word == (pytest.approx(tokens / words) if words else None)
    assert report.longest_documents == tuple(sorted((len(text.encode()) for text in TEXTS), reverse=True)[:5])
