"""Minimal pairs: reading, counting, intervals."""

import codecs
import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import minimal_pairs, pseudo_log_likelihood
from mlm_pytorch.evaluation.minimal_pairs import RESAMPLES, MinimalPair, read_minimal_pairs, summarize

TOKENIZER = train_tokenizer(["the cat sat on the mat", "a dog ran to the red house"] * 40, 320)
PAIRS = [
    MinimalPair("the cat sat", "the sat cat", "order", "syntax"),
    MinimalPair("a dog ran to the house", "a dog ran the to house", "order", "syntax"),
    MinimalPair("a cat", "a a a cat", "repeats", "syntax"),
    MinimalPair("the mat", "the mat", "same", "nothing"),
]


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64, initializer_range=0.5))


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_a_pair_is_right_where_the_good_sentence_scores_higher(score):
    result = minimal_pairs(encoder(), TOKENIZER, PAIRS, score=score, variant="word-l2r")
    right = []
    for pair in PAIRS:
        scored = pseudo_log_likelihood(encoder(), TOKENIZER, [pair.good, pair.bad], variant="word-l2r")
        right.append(getattr(scored[0], score) > getattr(scored[1], score))
    assert result.uids["order"].accuracy == np.mean(right[:2]) and result.uids["order"].num_pairs == 2
    assert result.uids["same"].accuracy == 0 and result.uids["same"].num_ties == 1  # a tie is wrong
    assert result.phenomena["syntax"].accuracy == pytest.approx((np.mean(right[:2]) + right[2]) / 2)
    assert result.overall.accuracy == pytest.approx((np.mean(right[:2]) + right[2]) / 3)
    assert result.overall.num_pairs == 4 and list(result.phenomena) == ["nothing", "syntax"]


@settings(max_examples=10)
@given(rights=st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=4))
def test_intervals_are_those_of_resampling_pairs(rights):
    pairs = [MinimalPair("a", "b", f"u{u}", "p") for u, cell in enumerate(rights) for _ in cell]
    good = np.array([float(right) for cell in rights for right in cell])
    result = summarize(pairs, good, np.full(len(good), 0.5))
    draw = np.random.default_rng(1)
    cells = [np.array(cell)[draw.integers(len(cell), size=(RESAMPLES, len(cell)))].mean(1) for cell in rights]
    low, high = np.quantile(np.mean(cells, axis=0), [0.025, 0.975])
    assert result.overall.low == pytest.approx(low, abs=0.08) and result.overall.high == pytest.approx(high, abs=0.08)
    assert (
        result.overall.low <= result.overall.accuracy + 1e-9 and result.overall.high >= result.overall.accuracy - 1e-9
    )
    assert result == summarize(pairs, good, np.full(len(good), 0.5))


def test_both_spellings_of_the_fields_and_names_where_there_are_none(tmp_path):
    records = [
        {"good": "a", "bad": "b", "uid": "u", "phenomenon": "p"},
        {"sentence_good": "c", "sentence_bad": "d", "UID": "v", "linguistics_term": "q"},
        {"good": "e", "bad": "f"},
    ]
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(codecs.BOM_UTF8 + "\n".join(map(json.dumps, records)).encode()))
    assert read_minimal_pairs(path) == [
        MinimalPair("a", "b", "u", "p"),
        MinimalPair("c", "d", "v", "q"),
        MinimalPair("e", "f", "mine", "mine"),
    ]


GOOD = b'{"good": "a", "bad": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*; name a .jsonl"),
        (b"", "holds no pairs"),
        (b"\n \n", "holds no pairs"),
        (
            GOOD + b'{"text": "a"}',
            r"line 2 is no pair: it has no sentence in good .*\(its fields: text\)",
        ),
        (b'{"good": "a", "bad": " "}', "line 1 is no pair: it has no sentence in bad or sentence_bad"),
        (b'{"good": "a", "bad": 3}', "line 1 is no pair"),
        (GOOD + rb'{"good": "the \ud800 cat", "bad": "b"}', r"line 2 holds half a character \(\\ud800\); repair it"),
        (b"[1]", "line 1 is no object"),
        (GOOD + b"{", "line 2 is not JSON"),
        (b"\xff" + GOOD, "is not UTF-8"),
        (gzip.compress(GOOD * 99, mtime=0)[:-12], "is damaged"),
        (b"\x1f\x8bnot really", "is damaged|cannot be read"),
    ],
)
def test_errors_name_the_line(tmp_path, content, message):
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_minimal_pairs(path)
