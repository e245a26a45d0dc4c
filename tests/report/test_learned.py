"""What is shown of a model is what evaluation measures."""

import numpy as np
import pytest
import torch

from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer, tokenizer_for_ids, train_tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import masked_loss
from mlm_pytorch.evaluation.fill import token_name, visible
from mlm_pytorch.huggingface import load_encoder
from mlm_pytorch.masking.words import derive_words
from mlm_pytorch.report import learned as module
from mlm_pytorch.report.learned import count_sample, look, token_texts


@pytest.fixture
def parts(run):
    return load_encoder(run), load_tokenizer(run / "model"), TokenStore.open(run / "store", "valid")


def seen(parts, **changes):
    model, tokenizer, held_out = parts
    asked = {"words": derive_words(tokenizer.backend), "occurrences": None, "num_tokens": 10**6, "num_samples": 3}
    return look(model, tokenizer, held_out, **asked | changes)


def test_the_whole_split_gives_what_evaluation_gives(parts):
    model, _, held_out = parts
    packs = list(module._packs(held_out, np.arange(len(held_out))))
    found = seen(parts)
    assert found.result == masked_loss(model, packs, held_out.special)
    assert found.num_pieces == found.of_pieces == len(held_out) == sum(len(pack.pieces) for pack in packs)
    assert {"frequency", "word", "length", "source"} <= set(found.groups)
    assert sum(group.num_targets for group in found.groups["frequency"].values()) == found.result.num_targets


def test_samples_are_held_out_pieces_with_the_evaluations_masks(parts):
    _, tokenizer, held_out = parts
    found = seen(parts, num_tokens=0)
    assert found.result is None and found.groups == {} and len(found.samples) == 3
    texts = [tokenizer.backend.decode(held_out.piece(i).tolist()) for i in range(len(held_out))]
    for sample in found.samples:
        text = "".join(fragment.text for fragment in sample.fragments)
        assert sample.is_cut or any(text.strip() == known.strip() for known in texts)
        masked = [fragment for fragment in sample.fragments if fragment.probability is not None]
        assert masked
        for fragment in masked:
            shares = [candidate.probability for candidate in fragment.candidates]
            assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001
            assert fragment.probability <= shares[0] + 1e-6
            assert fragment.is_right == (fragment.probability == pytest.approx(shares[0]))
    assert seen(parts, num_tokens=0, num_samples=0).samples == ()


def test_long_pieces_are_shown_in_part(parts, monkeypatch):
    monkeypatch.setattr(module, "SHOWN_TOKENS", 6)
    for sample in seen(parts, num_tokens=0).samples:
        assert sample.is_cut
        assert sum(len(fragment.text.split()) for fragment in sample.fragments) <= 8


def test_a_model_in_training_stays_in_training_and_a_broken_one_says_so(parts):
    model = parts[0].train()
    assert isinstance(model, Encoder)
    seen(parts)
    assert model.training
    with torch.no_grad():
        model.decoder.bias[:] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        seen(parts, num_tokens=0)
    with pytest.raises(ValueError, match="not finite"):
        seen(parts, num_samples=0)


def test_the_sample_that_is_counted_is_spread_and_bounded(parts):
    held_out = parts[2]
    counts, pieces = count_sample(held_out)
    whole = np.bincount(np.concatenate([held_out.piece(i) for i in range(len(held_out))]), minlength=len(counts))
    assert (counts == whole).all() and len(pieces) == len(held_out)
    few, some = count_sample(held_out, held_out.num_tokens // 4)
    assert 0 < few.sum() < whole.sum() and len(np.unique(np.diff(some))) <= 2 and some[0] <= 4


TEXTS = ["the cat sat on the mat, naïve café", "日本語の文 and 😀 emoji", "a\n\tb  c"] * 5


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "bytes", "characters"])
def test_tokens_joined_are_the_text(kind):
    tokenizer = train_tokenizer(TEXTS, None if kind == "bytes" else 330, kind=kind)
    for text in TEXTS[:3]:
        ids = tokenizer.encode_batch([text])[0]
        parts = token_texts(tokenizer, ids)
        assert len(parts) == len(ids)
        assert "".join(parts) == tokenizer.backend.decode(ids, skip_special_tokens=False)


def test_names_of_tokens():
    tokenizer = train_tokenizer(TEXTS, 330, kind="bpe")
    vocabulary = tokenizer.backend.get_vocab()
    assert token_name(tokenizer, vocabulary["Ġthe"]) == "the"
    assert token_name(tokenizer, vocabulary["a"]) == "…a" and token_name(tokenizer, vocabulary[","]) == ","
    assert token_name(tokenizer, vocabulary["Ċ"]) == "⏎" and token_name(tokenizer, vocabulary["Ġ"]) == "␣"
    assert token_name(tokenizer, vocabulary["Ã"]) == "Ã"  # half a character: its raw name
    assert visible("") == "∅"
    ids = tokenizer_for_ids(12, mask_token_id=10, pad_token_id=11)
    assert token_texts(ids, [3, 4]) == ["3", " 4"] and token_name(ids, 3) == "3"
