"""The breakdown adds up to the whole, and its groups are what they say."""

import numpy as np
import pytest
import torch

from mlm_pytorch.data.corpus import Document
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import Breakdown, PieceStream, bits_per_byte, masked_loss
from mlm_pytorch.evaluation.breakdown import MOST_SOURCES, OTHER_SOURCES
from mlm_pytorch.masking.words import derive_words

TEXTS = ["the cat sat on the mat", "a dog ran to the red house", "cat " * 60, "zyx wvu"] * 30
TOKENIZER = train_tokenizer(TEXTS[:2] * 9, 320)


def measured(sources: int):
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64))
    documents = [Document(text, str(i % sources)) for i, text in enumerate(TEXTS)]
    stream = PieceStream(documents, TOKENIZER, 24, 128)
    breakdown = Breakdown(TOKENIZER.special, derive_words(TOKENIZER.backend), stream.source)
    return masked_loss(model, stream, TOKENIZER.special, mask_prob=0.4, breakdown=breakdown), breakdown.groups()


@pytest.mark.parametrize("sources", [3, 100])
def test_every_axis_adds_up_to_the_whole(sources):
    result, groups = measured(sources)
    assert set(groups) == {"frequency", "word", "length", "source"}
    for found in groups.values():
        counts = [g.num_targets for g in found.values()]
        assert sum(counts) == result.num_targets
        assert np.average([g.loss for g in found.values()], weights=counts) == pytest.approx(result.loss, abs=1e-6)
        assert np.average([g.accuracy for g in found.values()], weights=counts) == pytest.approx(result.accuracy)
    assert len(groups["source"]) == min(sources, MOST_SOURCES + 1)
    assert (OTHER_SOURCES in groups["source"]) == (sources > MOST_SOURCES)


def test_groups_are_what_they_say():
    _, groups = measured(3)
    assert list(groups["length"]) == ["5 to 8 tokens", "9 to 16 tokens", "17 to 32 tokens"]
    assert set(groups["word"]) == {"begins a word", "continues a word"}
    assert "10,000 or more per million" in groups["frequency"] and "below 10 per million" not in groups["frequency"]


def test_frequency_may_be_that_of_another_corpus():
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64))
    stream = PieceStream([Document(text, None) for text in TEXTS], TOKENIZER, 24, 128)
    breakdown = Breakdown(TOKENIZER.special, occurrences=np.ones(TOKENIZER.special.num_tokens, np.int64))
    result = masked_loss(model, stream, TOKENIZER.special, breakdown=breakdown)
    (group,) = breakdown.groups()["frequency"].values()  # there all are equally frequent
    assert list(breakdown.groups()["frequency"]) == ["1,000 to 10,000 per million"]
    assert group.num_targets == result.num_targets


def test_bits_per_byte():
    assert bits_per_byte(2 * np.log(2), num_tokens=30, num_bytes=120) == pytest.approx(0.5)
