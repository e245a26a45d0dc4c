"""Words that no token reaches across, whatever the tokenizers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.play.words import trim, words_of


def cut(text, *tokens, **options):
    return [text[start:end] for start, end in words_of(text, tokens, **options)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n ", []),
        ("It isn't the dogs' \u2018mat\u2019.", ["It", "isn't", "the", "dogs", "'", "\u2018", "mat", "\u2019", "."]),
        ("don\u2019t x_y a-b 3 ^`", ["don\u2019t", "x_y", "a", "-", "b", "3", "^", "`"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 e\u0301t", ["\u0939\u093f\u0928\u094d\u0926\u0940", "e\u0301t"]),
        ("\u6771\u4eac to", ["\u6771", "\u4eac", "to"]),
        ("\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f467", ["\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f467"]),
        ("a[MASK]b [MASK].", ["a", "[MASK]", "b", "[MASK]", "."]),
        ("[MASK", ["[", "MASK"]),
    ],
)
def test_words_are_what_a_reader_would_call_words(text, words):
    assert cut(text) == words


def test_a_token_that_holds_parts_of_two_words_joins_them():
    assert cut("out of it", [(0, 6), (6, 9)]) == ["out of", "it"]
    assert cut("\u6771\u4eac\u90fd", [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]) == ["\u6771\u4eac", "\u90fd"]


def test_long_words_are_cut_where_all_tokenizers_begin_a_token():
    text = "ACGT" * 8
    fours, eights = [(i, i + 4) for i in range(0, 32, 4)], [(i, i + 8) for i in range(0, 32, 8)]
    assert cut(text, fours, eights) == ["ACGTACGT"] * 4
    assert cut(text[:8], fours[:2]) == ["ACGTACGT"] and cut(text[:8], fours[:2], by_token=True) == ["ACGT", "ACGT"]


@st.composite
def texts_and_tokens(draw):
    text = draw(st.text(st.sampled_from("ab '.\n\u6771\u093f\u200d\U0001f3fd[MASK]"), max_size=60))
    tokens = []
    for _ in range(draw(st.integers(0, 2))):
        cuts = sorted(draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
        tokens.append(list(pairwise(cuts)))
    return text, tokens


@given(texts_and_tokens(), st.booleans())
def test_words_cover_the_text_and_no_token_reaches_across(both, by_token):
    text, tokens = both
    words = words_of(text, tokens, by_token=by_token)
    covered = [i for start, end in words for i in range(start, end)]
    assert covered == sorted(set(covered))  # in order, none twice
    assert {i for i, char in enumerate(text) if not char.isspace()} <= set(covered)
    assert all(trim(text, word) == word for word in words)
    for token in (span for each in tokens for span in each):
        inner = trim(text, token)
        assert inner is None or sum(start <= inner[0] and inner[1] <= end for start, end in words) == 1
