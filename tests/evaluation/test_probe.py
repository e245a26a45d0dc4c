"""The probe: knows a model that helps from one that does not, and says what is wrong with a task."""

import codecs
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from mlm_pytorch.data.tokenizer import Tokenizer, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import PaddedModel, probe
from mlm_pytorch.evaluation.probe import Task, fresh, read_task

WORDS = ["cat", "dog", "mat", "red", "house", "sat", "ran", "the", "a", "to"]
TOKENIZER = train_tokenizer([" ".join(WORDS)] * 40, 320)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=32))


def task(num: int = 120) -> Task:
    """Which of two words is in the text: features that tell words apart solve it."""
    draw = np.random.default_rng(0)
    texts = [" ".join([*draw.choice(WORDS[2:], 6), WORDS[i % 2]]) for i in range(2 * num)]
    labels = np.arange(2 * num) % 2
    return Task(("0", "1"), texts[:num], labels[:num], texts[num:], labels[num:])


def deaf() -> Encoder:
    """Says the same of every text, until it is trained."""
    model = encoder()
    with torch.no_grad():
        model.model.embeddings.tok_embeddings.weight.zero_()
    return model


def test_frozen_features_tell_a_good_model_from_a_bad_one():
    pytest.importorskip("sklearn")
    result = probe(deaf(), TOKENIZER, task(), seeds=2, max_seq_len=32)
    assert result.num_train == result.num_test == 120 and result.num_truncated == 0 and result.majority == 0.5
    assert result.pretrained == 0.5 and result.untrained > 0.8 and len(result.by_seed) == 2
    assert result.verdict == "hurts" and result.difference == pytest.approx(result.pretrained - result.untrained)
    assert result == probe(deaf(), TOKENIZER, task(), seeds=2, max_seq_len=32)


def test_texts_are_encoded_in_batches(monkeypatch):
    """All at once their ids take gigabytes, of which no more than the model's length is kept."""
    pytest.importorskip("sklearn")
    sizes: list[int] = []
    encode = Tokenizer.encode_batch
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts: (sizes.append(len(texts)), encode(self, texts))[1]
    )
    whole = task(600)
    result = probe(encoder(), TOKENIZER, whole, seeds=1, max_seq_len=32)
    assert sum(sizes) == 1200 == result.num_train + result.num_test and max(sizes) <= 256


@pytest.mark.parametrize(
    ("num_texts", "verdict"), [(40, "makes no clear difference"), (4000, "helps"), (-4000, "hurts")]
)
def test_seeds_that_agree_on_few_texts_make_no_clear_difference(num_texts, verdict, monkeypatch):
    """A tenth of the texts more are right with one of the models, by each seed alike; other texts might differ."""
    model, texts = encoder(), [WORDS[0]] * abs(num_texts)
    labels = np.zeros(len(texts), np.int64)
    better, worse = (np.arange(len(texts)) % 10 < tenths for tenths in (5, 4))
    told, other = (better, worse) if num_texts > 0 else (worse, better)

    def right_of(measured):
        return lambda seed: told if measured is model else other

    monkeypatch.setattr(sys.modules[Task.__module__], "_frozen", lambda *_: right_of)
    result = probe(model, TOKENIZER, Task(("0", "1"), texts, labels, texts, labels), max_seq_len=32)
    assert abs(result.difference) == pytest.approx(0.1) and result.spread == pytest.approx(0) and result.error > 0
    assert result.verdict == verdict


def test_finetuning_trains_a_copy_of_the_whole_model():
    model = deaf()  # whose few words are learned faster than random vectors are unlearned
    result = probe(model, TOKENIZER, task(), kind="finetuned", seeds=2, max_seq_len=32)
    assert result.pretrained > 0.7 and result.verdict == "helps"
    assert model.model.embeddings.tok_embeddings.weight.abs().sum() == 0


def test_fresh_weights_are_the_seeds_and_nothing_else_changes():
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=320, max_position_embeddings=40, **size)
    for model in (encoder(), PaddedModel(BertForMaskedLM(config), TOKENIZER.special, 40)):
        state = torch.get_rng_state()
        first, again, other = fresh(model, 1), fresh(model, 1), fresh(model, 2)
        assert torch.equal(torch.get_rng_state(), state)
        flat = [torch.cat([p.flatten() for p in m.parameters()]) for m in (model, first, again, other)]
        assert torch.equal(flat[1], flat[2]) and not torch.equal(flat[1], flat[3])
        assert not torch.equal(flat[0], flat[1])


def test_long_texts_are_cut_and_counted():
    pytest.importorskip("sklearn")
    assert probe(encoder(), TOKENIZER, task(20), seeds=1, max_seq_len=6).num_truncated == 40


def test_reads_a_task(tmp_path):
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    train.write_text("label\ttext\nno\ta\tcat\r\nyes\tdog\n\n")
    test.write_text("yes\tmat\n")
    found = read_task(train, test)
    assert found.labels == ("no", "yes") and found.train_texts == ["a\tcat", "dog"]
    assert found.train_labels.tolist() == [0, 1] and found.test_labels.tolist() == [1]
    for path in (train, test):  # of Excel: the mark is no part of the first label, nor does it hide the header
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    again = read_task(train, test)
    assert (again.labels, again.train_texts, again.test_texts) == (found.labels, found.train_texts, found.test_texts)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, b"0\ta", "train.tsv cannot be read"),
        (b"", b"0\ta", "train.tsv holds no lines of label, tab, text"),
        (b"label\ttext\n", b"0\ta", "train.tsv holds no lines"),
        (b"0\ta\n0\tb", b"0\ta", r"has one label only \(0\); a task needs two or more"),
        (b"0\ta\n1 b", b"0\ta", "line 2 is not a label, a tab and a text"),
        (b"0\ta\n1\t", b"0\ta", "line 2 is not a label"),
        (b"0\ta\n1\tb", b"2\ta", "has the label '2', which .* has not"),
        (b"0\t\xff\n1\tb", b"0\ta", "is not UTF-8"),
    ],
)
def test_errors_of_a_task(tmp_path, train, test, message):
    for name, content in (("train.tsv", train), ("test.tsv", test)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_task(tmp_path / "train.tsv", tmp_path / "test.tsv")


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="--probe-seeds 0 is below 1"):
        probe(encoder(), TOKENIZER, task(4), seeds=0, max_seq_len=32)
    empty = Task(("0", "1"), ["a", ""], np.array([0, 1]), ["a"], np.array([0]))
    with pytest.raises(ValueError, match="the text '' has no tokens"):
        probe(encoder(), TOKENIZER, empty, max_seq_len=32)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ValueError, match=r"the probe needs scikit-learn; run pip install '\.\[probe\]' in"):
        probe(encoder(), TOKENIZER, task(4), max_seq_len=32)
