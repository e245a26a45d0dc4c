"""What models make of words equals what `fill` and `pseudo_log_likelihood` make of tokens."""

import math
import shutil

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from mlm_pytorch.cli.models import open_model
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import PaddedModel, fill, pseudo_log_likelihood
from mlm_pytorch.huggingface import export_encoder
from mlm_pytorch.play import reading as play_reading
from mlm_pytorch.play.reading import SurpriseSum, candidates, read, surprise_batches, token_surprises
from mlm_pytorch.play.words import trim

SENTENCES = ("the cat sat on the mat", "some fish swam in the deep sea", "the unseen birds sang in a tree")
TEXT = "the cat sat on the red mat"
BOTH = ("whole", "parts")


def surprises(reading):
    total = SurpriseSum(reading)
    return [done for batch in surprise_batches(reading) for done in total.add(token_surprises(reading, batch))]


def one(models, name, text=TEXT):
    words, [reading] = read(text, [models[name]])
    return words, reading


@pytest.mark.parametrize("name", BOTH)
def test_surprise_is_the_pseudo_log_likelihood_summed_over_words(models, name):
    _, reading = one(models, name)
    opened = models[name]
    [expected] = pseudo_log_likelihood(opened.model, opened.tokenizer, [TEXT], variant="word-l2r")
    found = surprises(reading)
    assert [each.word for each in found] == list(range(7))
    assert sum(each.nats for each in found) == pytest.approx(-expected.sum, abs=1e-4)
    for each, own in zip(found, reading.tokens, strict=True):
        assert each.nats == pytest.approx(-float(expected.log_probs[own.start : own.stop].sum()), abs=1e-4)
        assert len(each.expected) == 3


def test_batches_do_not_change_the_sums(models, monkeypatch):
    _, reading = one(models, "parts")
    whole = surprises(reading)
    monkeypatch.setitem(play_reading.BATCH_TOKENS, "cpu", 2 * reading.num_tokens)
    assert max(map(len, surprise_batches(reading))) == 2
    for got, expected in zip(surprises(reading), whole, strict=True):
        assert got.word == expected.word and got.nats == pytest.approx(expected.nats, abs=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_in_a_long_text_a_word_is_seen_with_what_is_around_it(models, monkeypatch, name):
    """Each word's surprise equals that in the excerpt around it, read as a text of its own."""
    text = " ".join([*SENTENCES, SENTENCES[0]])
    _, reading = one(models, name, text)
    framing = reading.num_tokens - len(reading.ids)
    monkeypatch.setattr(play_reading, "LONGEST_WINDOW", 12 + framing)
    assert reading.window == 12 < len(reading.ids)
    found = {each.word: each.nats for each in surprises(reading)}
    assert list(found) == list(range(len(text.split())))
    model, special = reading.opened.model, reading.opened.tokenizer.special
    for word, own in enumerate(reading.tokens):
        nats = 0.0
        for i in own:
            start = min(max(0, i - 6), len(reading.ids) - 12)
            ids = list(reading.ids)
            ids[i : own.stop] = [special.mask_token_id] * (own.stop - i)
            framed = torch.tensor([reading.framed(ids[start : start + 12])])
            with torch.no_grad():
                log_probs = model(framed)[0, len(special.prefix) + i - start].log_softmax(-1)
            nats -= float(log_probs[reading.ids[i]])
        assert found[word] == pytest.approx(nats, abs=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_candidates_are_those_of_fill(models, name):
    opened = models[name]
    _, reading = one(models, name, "the cat sat on the mat")
    filled = fill(opened.model, opened.tokenizer, "the [MASK] sat on the mat", 5).masks
    [slot] = candidates(reading, {1: 1}, 5)[1]
    assert slot.candidates == filled[0].candidates and slot.written is None
    own = candidates(reading, {1: None}, 5)[1]
    assert len(own) == len(reading.tokens[1])
    if name == "whole":
        assert own[0].candidates == filled[0].candidates
        assert own[0].candidates[0].token == "cat" == own[0].written.token and own[0].rank == 1


def test_ranks_of_what_is_written(models):
    _, reading = one(models, "whole", "the dog sat on the mat")
    [slot] = candidates(reading, {1: None}, 400)[1]
    assert slot.candidates[slot.rank - 1].id == slot.written.id and slot.rank > 1
    assert slot.candidates[slot.rank - 1].probability == pytest.approx(slot.written.probability)
    assert len(slot.candidates) == reading.opened.tokenizer.special.num_tokens - len(
        reading.opened.tokenizer.special.ids
    )


def test_several_words_are_hidden_at_once(models):
    _, reading = one(models, "whole", "the cat sat on the mat")
    opened = models["whole"]
    filled = fill(opened.model, opened.tokenizer, "the [MASK] sat on the [MASK]", 3).masks
    found = candidates(reading, {5: None, 1: None}, 3)
    assert [slot.candidates for word in (1, 5) for slot in found[word]] == [mask.candidates for mask in filled]
    assert candidates(reading, {}, 3) == {}


@pytest.mark.parametrize("name", BOTH)
def test_a_mask_in_the_text_is_one(models, name):
    text = "the [MASK] sat on [MASK] mat"
    words, reading = one(models, name, text)
    assert [text[start:end] for start, end in words] == text.split()
    assert [kind == "mask" for kind in reading.kinds] == [word == "[MASK]" for word in text.split()]
    filled = fill(models[name].model, models[name].tokenizer, text, 4).masks
    found = candidates(reading, {}, 4)
    assert [slot.candidates for word in (1, 4) for slot in found[word]] == [mask.candidates for mask in filled]
    assert [each.word for each in surprises(reading)] == [0, 2, 3, 5]


def test_two_models_share_words_and_every_token_is_in_one(models):
    text = "  the cat's house, unreadable [SEP]  \n\nsat  on it.  "
    words, readings = read(text, [models[name] for name in BOTH])
    assert [text[start:end] for start, end in words][:4] == ["the", "cat's", "house", ","]
    for reading in readings:
        _, spans = reading.opened.tokenizer.encode_spans(text)
        owners = {i: word for word, own in enumerate(reading.tokens) for i in own}
        for i, span in enumerate(spans):
            if inner := trim(text, span):
                start, end = words[owners[i]]
                assert start <= inner[0] and inner[1] <= end
        assert reading.kinds[3] == "word" and "".join(reading.pieces(0)) == "the"
    assert [len(own) for own in readings[0].tokens] != [len(own) for own in readings[1].tokens]


def test_words_that_the_vocabulary_lacks(models):
    _, reading = one(models, "parts", "the \u6771 sat")
    assert reading.kinds == ("word", "unknown", "word")
    assert [each.word for each in surprises(reading)] == [0, 2]
    [slot] = candidates(reading, {1: None}, 3)[1]
    assert slot.written is None and len(slot.candidates) == 3


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("amino-acids", "MKLV MK", ["M", "K", "L", "V", "M", "K"]),
        ("kmer:3", "ACGTACG\nACG", ["ACG", "TAC", "G\nAC", "G"]),
        ("characters", "to be", ["to", "be"]),
        ("bytes", "to b\u00e9", ["to", "b\u00e9"]),
    ],
)
def test_where_there_are_no_words_tokens_are(kind, text, words, tmp_path):
    tokenizer = train_tokenizer([text] * 4, kind=kind)
    encoder = Encoder(EncoderConfig(tokenizer.special.num_tokens, 32, 48, 2, 2, max_position_embeddings=64))
    export_encoder(encoder, tokenizer.special, tmp_path, tokenizer.save)
    found, [reading] = read(text, [open_model(tmp_path)])
    assert [text[start:end] for start, end in found] == words
    assert [each.word for each in surprises(reading)] == list(range(len(words)))


def test_a_model_of_another_architecture(folders, tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shutil.copytree(folders["parts"], tmp_path / "bert")
    vocabulary = open_model(folders["parts"]).tokenizer.special.num_tokens
    BertForMaskedLM(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **size)).save_pretrained(
        tmp_path / "bert"
    )
    opened = open_model(tmp_path / "bert")
    assert isinstance(opened.model, PaddedModel)
    _, [reading] = read(TEXT, [opened])
    [expected] = pseudo_log_likelihood(opened.model, opened.tokenizer, [TEXT], variant="word-l2r")
    assert sum(each.nats for each in surprises(reading)) == pytest.approx(-expected.sum, abs=1e-3)
    filled = fill(opened.model, opened.tokenizer, "the [MASK] sat on the red mat", 3).masks
    assert candidates(reading, {1: 1}, 3)[1][0].candidates == filled[0].candidates


def test_what_a_model_cannot_take_is_named(models):
    with pytest.raises(ValueError, match=r"the text has 103 tokens for .*whole, which takes 64; shorten it"):
        read("the " * 100, [models["whole"]])
    _, reading = one(models, "whole", ("the " * 60).strip())
    with pytest.raises(ValueError, match=r"has 69 tokens for .* with these masks, which takes 64; hide fewer"):
        candidates(reading, {0: 8}, 3)
    with pytest.raises(ValueError, match="not Unicode"):
        read("a \udcff", [models["whole"]])


def test_a_model_that_is_damaged(models):
    _, reading = one(models, "whole")
    opened = reading.opened
    bias = opened.model.decoder.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(math.nan)
    try:
        for work in (lambda: surprises(reading), lambda: candidates(reading, {1: None}, 3)):
            with pytest.raises(ValueError, match="not finite"):
                work()
    finally:
        with torch.no_grad():
            bias.copy_(kept)
