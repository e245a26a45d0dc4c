"""Pseudo-log-likelihoods: equal to `minicons`, to a slow reference, and whatever is computed together."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minicons_models import ARCHITECTURES, FIXTURE, build, sentences, tokenizer_config
from tokenizers import Tokenizer as Backend
from torch import nn

from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import PaddedModel, pseudo_log_likelihood
from mlm_pytorch.evaluation.rows import row_logits
from mlm_pytorch.huggingface import load_masked_lm, max_positions

STORED = json.loads(FIXTURE.read_text(encoding="utf-8"))
TOKENIZER = train_tokenizer(["the cat sat on the mat", "a dog ran to the red house"] * 40, 320)


def encoder(num_layers: int = 3, **options) -> Encoder:
    torch.manual_seed(0)
    config = {"local_attention": 8, "max_position_embeddings": 64, "initializer_range": 0.5} | options
    return Encoder(EncoderConfig(320, 32, 48, num_layers, 2, **config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Hugging Face folder for each architecture, with the tokenizer that the fixture keeps."""
    made = {}
    for architecture in ARCHITECTURES:
        made[architecture] = folder = tmp_path_factory.mktemp(architecture)
        content = json.dumps(STORED["models"][architecture]["tokenizer"], ensure_ascii=False)
        build(architecture, Backend.from_str(content)).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(architecture)))
    return made


@pytest.mark.parametrize("variant", ["original", "word-l2r"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_minicons(folders, architecture, variant):
    assert STORED["sentences"] == sentences() and len(sentences()) >= 500
    model, tokenizer = load_masked_lm(folders[architecture]), load_tokenizer(folders[architecture])
    assert isinstance(model, Encoder) == (architecture == "modernbert")
    if not isinstance(model, Encoder):
        model = PaddedModel(model, tokenizer.special, max_positions(model))
        assert model.head is not None
    scores = pseudo_log_likelihood(model, tokenizer, sentences(), variant=variant)
    expected = STORED["models"][architecture]
    np.testing.assert_allclose([s.sum for s in scores], expected[f"{variant} sum"], atol=1e-3, rtol=0)
    np.testing.assert_allclose([s.mean for s in scores], expected[f"{variant} mean"], atol=1e-3, rtol=0)


def reference(model: nn.Module, text: str, variant: str) -> list[float]:
    """One row at a time, through the whole model; words as the tokenizer's own pre-tokenizer has them."""
    encoding = TOKENIZER.backend.encode(text)
    ids, words = encoding.ids, encoding.word_ids
    found = []
    for i, word in enumerate(words):
        if word is None:
            continue
        hidden = [j for j in range(i, len(ids)) if j == i or (variant == "word-l2r" and words[j] == word)]
        row = torch.tensor([[TOKENIZER.special.mask_token_id if j in hidden else x for j, x in enumerate(ids)]])
        with torch.no_grad():
            found.append(float(model.eval()(row)[0, i].log_softmax(-1)[ids[i]]))
    return found


@given(
    texts=st.lists(st.text("acdeghimnorstu .'", min_size=1, max_size=30), min_size=1, max_size=6),
    variant=st.sampled_from(["original", "word-l2r"]),
    num_layers=st.sampled_from([1, 2, 3]),
    budget=st.sampled_from([1, 40, 4096]),
)
@settings(max_examples=20)
def test_equals_a_slow_reference_in_batches_of_any_size(texts, variant, num_layers, budget):
    model = encoder(num_layers)
    scores = pseudo_log_likelihood(model, TOKENIZER, texts, variant=variant, batch_tokens=budget)
    for text, score in zip(texts, scores, strict=True):
        expected = reference(model, text, variant)
        np.testing.assert_allclose(score.log_probs, expected, atol=2e-4)
        assert score.sum == pytest.approx(sum(expected), abs=1e-3)
        assert score.mean == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_one_column_equals_the_whole_model():
    model, ids = encoder().eval(), torch.randint(5, 320, (7, 20))
    column = torch.arange(7) * 3 % 20
    with torch.no_grad():
        torch.testing.assert_close(row_logits(model)(ids, column), model(ids)[torch.arange(7), column])


def test_a_text_cannot_write_special_tokens():
    score = pseudo_log_likelihood(encoder(), TOKENIZER, ["the [MASK] sat"])[0]
    assert len(score.log_probs) == len(TOKENIZER.encode_batch(["the [MASK] sat"])[0]) > 4


def test_deterministic_and_leaves_the_model_as_it_was():
    model, seen = encoder().train(), []
    texts = ["the cat", "a dog ran", "the mat"]
    first, second = (pseudo_log_likelihood(model, TOKENIZER, texts, progress=seen.append) for _ in range(2))
    assert all((a.log_probs == b.log_probs).all() for a, b in zip(first, second, strict=True))
    assert model.training and seen[-1] == 3


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        return torch.full((*ids.shape, 320), float("nan"))


@pytest.mark.parametrize(
    ("model", "text", "options", "message"),
    [
        (encoder(), "", {}, r"sentence 2 \(''\) has no tokens; leave it out"),
        (encoder(), "a cat " * 40, {}, "tokens exceeds max_position_embeddings 64"),
        (encoder(), "a cat " * 40, {"max_seq_len": 64}, "sentence 2 has .* more than the model's 64; shorten it"),
        (encoder(), "a cat", {"variant": "r2l"}, "variant 'r2l' is unknown; choose original or word-l2r"),
        (Broken(), "a cat", {}, "logits for .* are not finite"),
    ],
)
def test_errors(model, text, options, message):
    with pytest.raises(ValueError, match=message):
        pseudo_log_likelihood(model, TOKENIZER, ["the mat", text], **options)
