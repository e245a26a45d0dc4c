"""Candidates for masked positions, for tokenizers that swallow the blank before a mask and for those that do not."""

import json

import pytest
import tokenizers
import torch
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_pytorch.data.tokenizer import load_tokenizer, tokenizer_for_ids, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.evaluation import fill
from mlm_pytorch.evaluation.fill import masked_probabilities, masks_understood, names_apart, token_name
from mlm_pytorch.huggingface import CheckedExport, export_encoder

TEXTS = ["the cat sat on the mat", "a dog ran to the red house"] * 40
TOKENIZER = train_tokenizer(TEXTS, 320)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))


def without_lstrip(folder):
    """The same tokenizer with a mask token that leaves the blank before it alone, as most published ones have."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["lstrip"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def test_equals_transformers(tmp_path):
    model = encoder()
    export_encoder(model, TOKENIZER.special, tmp_path, TOKENIZER.save)
    theirs, tokenizer = AutoModelForMaskedLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "the [MASK] sat on [MASK] mat"
    filled = fill(model.train(), TOKENIZER, text, top_k=200)
    assert model.training
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**inputs).logits[0]
    where = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    assert [mask.index for mask in filled.masks] == where
    logits[:, list(TOKENIZER.special.ids)] = float("-inf")
    logits[:, TOKENIZER.special.num_tokens :] = float("-inf")  # rows that only fill the vocabulary up
    for mask, row in zip(filled.masks, logits[where].softmax(-1), strict=True):
        got = torch.zeros(len(logits[0]))
        for candidate in mask.candidates:
            got[candidate.id] = candidate.probability
        torch.testing.assert_close(got, torch.where(got > 0, row, 0.0), atol=1e-5, rtol=1e-3)
        assert not {c.id for c in mask.candidates} & set(TOKENIZER.special.ids)
        assert [c.probability for c in mask.candidates] == sorted(
            (c.probability for c in mask.candidates), reverse=True
        )


def test_the_blank_before_a_mask_is_not_counted_twice(tmp_path):
    TOKENIZER.save(tmp_path)
    other = without_lstrip(tmp_path)
    model, text = encoder(), "the [MASK] sat"
    assert fill(model, other, text).masks == fill(model, TOKENIZER, text).masks
    assert fill(model, other, "the[MASK] sat").masks == fill(model, TOKENIZER, "the[MASK] sat").masks


def test_masks_are_written_as_the_tokenizer_does_and_each_character_knows_where_it_is_from(tmp_path):
    TOKENIZER.save(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(path.read_text().replace("[MASK]", "<mask>"))
    for tokenizer, blank in ((load_tokenizer(tmp_path), " "), (without_lstrip(tmp_path), "")):
        text = "a [MASK]!  <mask>[MASK] b"
        written, spans = masks_understood(tokenizer, text)
        assert written == f"a{blank}<mask>! {blank}<mask><mask> b" and len(spans) == len(written)
        for char, (start, end) in zip(written, spans, strict=True):
            assert text[start:end] == char or text[start:end] in ("[MASK]", "<mask>")
    with pytest.raises(ValueError, match=r"not Unicode \(half a character at 3\)"):
        masks_understood(TOKENIZER, "a \udcff")


def test_only_masked_positions_meet_the_vocabulary():
    model, special = encoder(), TOKENIZER.special
    seen = []
    model.decoder.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.shape[0]))
    ids = TOKENIZER.encode("the cat [MASK] on the mat")
    where = [ids.index(special.mask_token_id)]
    rows = masked_probabilities(model, special, ids, where)
    assert seen == [1] and rows.shape == (1, special.num_tokens)
    torch.testing.assert_close(rows.sum(1), torch.ones(1))
    assert float(rows[0, list(special.ids)].sum()) == 0
    with torch.no_grad():
        model.decoder.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        masked_probabilities(model, special, ids, where)


@pytest.mark.parametrize(
    ("tokenizer", "text", "index"),
    [
        (train_tokenizer(TEXTS, kind="bytes"), "a [MASK]at", 3),  # the blank is a byte like others: it stays
        (train_tokenizer(TEXTS, kind="characters"), "a [MASK]at", 3),
        (train_tokenizer(TEXTS, kind="amino-acids"), "MK[MASK]LV", 3),
        (train_tokenizer(TEXTS, kind="kmer:2"), "acgt[MASK]AC", 3),
        (tokenizer_for_ids(50, mask_token_id=1, pad_token_id=0), "17 4 [MASK] 49", 2),
    ],
)
def test_sequences_of_other_kinds(tokenizer, text, index):
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(tokenizer.special.num_tokens, 32, 48, 2, 2, max_position_embeddings=64))
    [mask] = fill(model, tokenizer, text, top_k=3).masks
    assert mask.index == index
    if tokenizer.kind != "bytes":  # of which many are written otherwise
        written = [tokenizer.backend.id_to_token(candidate.id) for candidate in mask.candidates]
        assert [candidate.token for candidate in mask.candidates] == written


def test_a_mask_that_lies_in_the_vocabulary_alone(tmp_path):
    """As of a vocabulary made by hand: transformers finds the mask in a text all the same."""
    names = ["[PAD]", "[UNK]", "[MASK]", "the", "cat", "sat"]
    backend = tokenizers.Tokenizer(WordLevel({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()  # which cuts at brackets
    backend.save(str(tmp_path / "tokenizer.json"))
    roles = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer, text = load_tokenizer(tmp_path), "the [MASK] sat"
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == [3, 2, 5]
    assert tokenizer.encode_batch([text]) == [[3, 1, 1, 1, 5]]  # a corpus can't write it
    model = Encoder(EncoderConfig(64, 32, 48, 2, 2))
    [mask] = fill(model, tokenizer, text, top_k=3).masks
    assert mask.index == 1 and {candidate.token for candidate in mask.candidates} == {"the", "cat", "sat"}
    CheckedExport(tokenizer.special, tokenizer.backend, tokenizer.save, [[3, 1, 5]])(model, tmp_path / "out")


def test_a_text_that_is_no_ids():
    tokenizer = tokenizer_for_ids(50, mask_token_id=1, pad_token_id=0)
    with pytest.raises(ValueError, match="none of the tokenizer's 50 tokens"):
        fill(Encoder(EncoderConfig(50, 32, 48, 2, 2)), tokenizer, "the [MASK] sat")


def test_candidates_are_written_as_a_reader_would():
    candidates = fill(encoder(), TOKENIZER, "the [MASK] sat", top_k=200).masks[0].candidates
    words = {c.token for c in candidates}
    assert "the" in words and not any(word != word.strip() for word in words) and all(words)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "wordpiece", "characters"])
def test_names_tell_all_tokens_apart(kind):
    """Bytes that are parts of characters; words with and without the blank that they bring."""
    tokenizer = train_tokenizer([*TEXTS, "Straße 犬", "athe the"], None if kind == "bytes" else 330, kind=kind)
    ids = [i for i in range(tokenizer.special.num_tokens) if i not in tokenizer.special.ids]
    for names in ([token_name(tokenizer, i) for i in ids], names_apart(tokenizer, ids)):
        twice = {name for name in names if names.count(name) > 1}
        assert not twice and all(names)


def test_names_are_plain_where_nothing_looks_alike():
    tokenizer = train_tokenizer([*TEXTS, "athe the"], 330)
    vocabulary = tokenizer.backend.get_vocab()
    bare, with_blank = vocabulary["he"], vocabulary["Ġthe"]
    assert names_apart(tokenizer, [bare, with_blank, bare]) == ["he", "the", "he"]
    rest = next(name for name in vocabulary if name.isalpha() and name.isascii() and f"Ġ{name}" in vocabulary)
    assert names_apart(tokenizer, [vocabulary[rest], vocabulary[f"Ġ{rest}"], bare]) == [f"…{rest}", rest, "he"]


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("no gap", 5, r"no mask in 'no gap'; write \[MASK\] where a word is to be found"),
        ("a [MASK]", 0, "--top-k 0 is outside 1 to 2"),
        ("a [MASK]", 10**6, "--top-k 1000000 is outside 1 to"),
        ("[MASK] " * 70, 5, "exceeds max_position_embeddings 64"),
    ],
)
def test_errors(text, top_k, message):
    with pytest.raises(ValueError, match=message):
        fill(encoder(), TOKENIZER, text, top_k=top_k)
