"""New tokens shorten the text, mean what their pieces meant, and leave every other word as it was."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    IBertConfig,
    IBertForMaskedLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlm_pytorch.adaptation import count_pieces, extend_embeddings, extend_vocabulary, tokenizer_fit
from mlm_pytorch.adaptation.vocabulary import _harmful
from mlm_pytorch.data.tokenizer import (
    Tokenizer,
    load_tokenizer,
    make_tokenizer_of_files,
    tokenizer_for_ids,
    train_tokenizer,
)
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.masking import derive_words

GENERAL = [
    "the cat sat on a mat and the dog ran to its own red house by the old river",
    "a card in the heart of the path was read by a man who ran on and on",
    "my opal cards are there, that's all she said; it isn't much!",
]
DOMAIN = [
    "cardiomyopathy patients ran, and cardiomyopathies' pathology isn't there",
    "myocardial cardiology of the cardiomyopathy",
    "the heart's cardiomyopathy: a pathology of the myocardial kind",
]
KINDS = ["bpe", "wordpiece", "unigram"]


def trained(kind: str) -> Tokenizer:
    return train_tokenizer(GENERAL * 30, kind=kind, vocab_size={"bpe": 300, "unigram": 330}.get(kind, 110))


def words(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Each word of a text with the borders of its tokens."""
    encoding = tokenizer.encodings([text])[0]
    found: dict[int, list] = {}
    for word, span in zip(encoding.word_ids, encoding.offsets, strict=True):
        found.setdefault(word or 0, []).append(span)
    return [(text[spans[0][0] : spans[-1][1]], tuple(end for _, end in spans)) for spans in found.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_used_and_other_words_are_cut_as_before(kind, tmp_path):
    tokenizer = trained(kind)
    counts = count_pieces(tokenizer, DOMAIN * 20)
    extension = extend_vocabulary(tokenizer, counts, 25)
    extended, first = extension.tokenizer, tokenizer.special.num_tokens
    assert list(extension.pieces) == list(range(first, first + len(extension.pieces))) and len(extension.pieces) == 25
    # every old token keeps its id, every new one stands for its pieces
    old, new = tokenizer.backend.get_vocab(), extended.backend.get_vocab()
    assert old.items() <= new.items() and len(new) == len(old) + 25
    after = count_pieces(extended, DOMAIN * 20)
    assert after.num_pieces < 0.75 * counts.num_pieces and after.num_words == counts.num_words
    used = {id for word in after.words for id in word}
    assert len(used & set(extension.pieces)) > 5
    draw = random.Random(0)
    mixed = [" ".join(draw.sample((" ".join(GENERAL + DOMAIN)).split(), 12)) for _ in range(60)]
    for text in (*GENERAL, *DOMAIN, *mixed):
        for (word, cut), (same, before) in zip(words(extended, text), words(tokenizer, text), strict=True):
            assert word == same and set(cut) <= set(before), "a word is cut where it was not cut before"
        assert extended.backend.decode(extended.encode_batch([text])[0]) == tokenizer.backend.decode(
            tokenizer.encode_batch([text])[0]
        )
        expanded = [p for id in extended.encode_batch([text])[0] for p in extension.pieces.get(id, (id,))]
        assert expanded == tokenizer.encode_batch([text])[0]
    # word masking finds the same words
    for text in mixed[:20]:
        ids = torch.tensor(extended.encode_batch([text])[0])
        starts = derive_words(extended.backend).starts_word(ids[None])[0]
        word_ids = extended.encodings([text])[0].word_ids
        expected = [i == 0 or word_ids[i] != word_ids[i - 1] for i in range(len(word_ids))]
        assert starts.tolist() == expected
    # transformers reads the same
    extended.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in DOMAIN:
        assert loaded(text)["input_ids"] == extended.encode(text)
    assert (
        loaded.mask_token_id == tokenizer.special.mask_token_id and load_tokenizer(tmp_path).special == extended.special
    )


def test_tokens_save_most_first():
    tokenizer = trained("bpe")
    counts = count_pieces(tokenizer, DOMAIN * 20)
    saved = [extend_vocabulary(tokenizer, counts, n) for n in (1, 2, 4)]
    assert saved[0].pieces.items() <= saved[1].pieces.items() <= saved[2].pieces.items()
    pairs = Counter()
    for word, count in counts.words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    ((best, times),) = pairs.most_common(1)
    first = saved[0].pieces[tokenizer.special.num_tokens]
    assert pairs[first] == times and (first == best or pairs[best] == times)
    assert count_pieces(saved[0].tokenizer, DOMAIN * 20).num_pieces == counts.num_pieces - times


def test_a_wordpiece_token_that_harms_is_refused():
    names = ["car", "##dio", "##logy", "##l", "##ogy", "##o", "##gy", "##dies", "##d", "##ies"]
    model = {"continuing_subword_prefix": "##", "vocab": {name: i for i, name in enumerate(names)}}
    seen = Counter({("car", "##dio", "##logy"): 3, ("car", "##dio", "##l"): 4, ("car", "##dies"): 3})
    assert _harmful(model, seen, ["cardio", "##diology"]) == set()
    # "cardiology" as car ##diol ##ogy is as long as before, and "cardiol", shortened, is more frequent
    assert _harmful(model, seen, ["##diol"]) == set()
    assert _harmful(model, seen + Counter({("car", "##dio", "##logy"): 1}), ["##diol"]) == {"##diol"}
    # "cardies" would end as card ##ies with "card", as long; without ##ies it is longer, or has no end at all
    assert _harmful(model, Counter({("car", "##dies"): 3, ("car", "##d"): 4}), ["card"]) == set()
    model["vocab"] = {name: i for i, name in enumerate([*names[:-1], "##i", "##es"])}
    assert _harmful(model, Counter({("car", "##dies"): 3, ("car", "##d"): 3}), ["card"]) == {"card"}
    assert _harmful(model, Counter({("car", "##dies"): 3, ("car", "##d"): 4}), ["card"]) == set(), "one piece longer"
    model["vocab"] = {name: i for i, name in enumerate(names[:-1])}
    assert _harmful(model, Counter({("car", "##dies"): 3, ("car", "##d"): 9}), ["card"]) == {"card"}


def test_wordpiece_gets_a_word_whose_plural_is_cut_elsewhere():
    names = ["[PAD]", "[UNK]", "[MASK]", "fil", "##m", "##ms", "##s"]
    backend = Backend(models.WordPiece({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    config = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    tokenizer = make_tokenizer_of_files(files, "a tokenizer")
    counts = count_pieces(tokenizer, ["film film film film films"] * 30)
    extended = extend_vocabulary(tokenizer, counts, 1).tokenizer
    cuts = [
        [t.backend.encode(w, add_special_tokens=False).tokens for w in ("film", "films")] for t in (tokenizer, extended)
    ]
    assert cuts == [[["fil", "##m"], ["fil", "##ms"]], [["film"], ["film", "##s"]]]


def test_added_tokens_behind_a_unigram_vocabulary_keep_their_ids():
    backend = Backend(models.Unigram([("<unk>", 0.0), *((c, -3.0) for c in "▁abcd"), ("ab", -4.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(["[PAD]", "[MASK]"])
    files = {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(
            {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "<unk>"}
        ).encode(),
    }
    tokenizer = make_tokenizer_of_files(files, "a tokenizer")
    extension = extend_vocabulary(tokenizer, count_pieces(tokenizer, ["abcd ab cd abcd"] * 5), 3)
    vocabulary = extension.tokenizer.backend.get_vocab()
    assert (vocabulary["[PAD]"], vocabulary["[MASK]"]) == (7, 8) and min(extension.pieces) == 9
    assert extension.tokenizer.special.mask_token_id == 8
    assert len(extension.tokenizer.encode_batch(["abcd"])[0]) < len(tokenizer.encode_batch(["abcd"])[0])
    assert extension.tokenizer.encode("a [MASK]")[-1] == 8


def test_what_cannot_be_extended():
    tokenizer = trained("bpe")
    with pytest.raises(ValueError, match="no two pieces of the corpus come together 3 times"):
        extend_vocabulary(tokenizer, count_pieces(tokenizer, ["xyz"]), 5)
    numbers = tokenizer_for_ids(10, add_special_tokens=True)
    with pytest.raises(ValueError, match="of the kind WordLevel, to which no tokens can be added"):
        extend_vocabulary(numbers, count_pieces(numbers, ["1 2 3"]), 5)


@pytest.mark.parametrize(
    ("kind", "letters"),
    [("amino-acids", "ACDEFGHIKLMNPQRSTVWY"), ("bpe", "ACDEFGHIKLMNPQRSTVWY"), ("kmer:3", "ACGT"), ("kmer:3", "xyz")],
)
def test_sequences_have_no_words_to_add_or_to_judge_by(kind, letters):
    draw = random.Random(0)
    sequences = ["".join(draw.choices(letters, k=60)) for _ in range(50)]
    tokenizer = trained("bpe") if kind == "bpe" else train_tokenizer([], kind=kind)
    counts = count_pieces(tokenizer, sequences)
    fit = tokenizer_fit(tokenizer, counts)
    assert not fit.fits_badly
    assert fit.describe().startswith("the corpus has no words between blanks, by which the tokenizer's fit could be")
    with pytest.raises(ValueError, match="is of DNA or proteins, where new tokens would join letters as if"):
        extend_vocabulary(tokenizer, counts, 5)


def test_writing_without_blanks_is_not_judged_by_its_words():
    tokenizer = trained("bpe")
    fit = tokenizer_fit(tokenizer, count_pieces(tokenizer, ["東京都は日本の首都である。" * 40] * 5))
    assert not fit.has_words and not fit.fits_badly


# -- embeddings --------------------------------------------------------------------------------------------------------

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def make(name: str, tied: bool):
    torch.manual_seed(0)
    if name == "encoder":
        model = Encoder(EncoderConfig(128, 32, 48, 1, 2, tie_word_embeddings=tied))
        torch.nn.init.normal_(model.decoder.bias)
        return model
    kind, config = {"bert": (BertForMaskedLM, BertConfig), "roberta": (RobertaForMaskedLM, RobertaConfig)}[name]
    model = kind(config(vocab_size=128, tie_word_embeddings=tied, **SHAPE))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["encoder", "bert", "roberta"])
@pytest.mark.parametrize("first", [125, 128])
def test_new_rows_are_means_and_old_rows_are_bit_for_bit_the_same(name, tied, first):
    model = make(name, tied)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pieces = {first + i: (5 + i, 9, 77) for i in range(6)}
    grown = extend_embeddings(model, pieces)
    after = grown.state_dict()
    tables = [key for key in after if after[key].shape != before[key].shape]
    assert len(tables) >= 3, "input, output and the output's bias"
    for key, value in after.items():
        if key not in tables:
            assert torch.equal(value, before[key]), key
            continue
        assert torch.equal(value[:first], before[key][:first]), key
        for id, joined in pieces.items():
            assert torch.equal(value[id], before[key][list(joined)].mean(0)), key
    ids = torch.tensor([[5, 9, first, first + 5, 77]])
    logits = grown.eval()(ids)
    logits = getattr(logits, "logits", logits)
    assert logits.shape[-1] % 64 == 0 and logits.shape[-1] > max(pieces) and logits.isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_model_is_loaded_as_it_was_saved(tied, tmp_path):
    """Resizing makes one of BERT's two biases of the output, of which a model without tying has each for itself."""
    model = make("bert", tied)
    if not tied:
        with torch.no_grad():
            model.cls.predictions.decoder.bias.fill_(1.5)
    bias = model.cls.predictions.decoder.bias.clone()
    grown = extend_embeddings(model, {128: (5, 9)})
    assert torch.equal(grown.cls.predictions.decoder.bias[:128], bias)
    grown.save_pretrained(tmp_path)
    loaded, report = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.tensor([[5, 128, 9]])
    assert torch.equal(loaded.eval()(ids).logits, grown.eval()(ids).logits)


def test_an_output_layer_that_is_kept_transposed_grows_along_its_tokens():
    torch.manual_seed(0)
    sizes = {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 16, "hidden_size": 32}
    model = MobileBertForMaskedLM(MobileBertConfig(vocab_size=100, **SHAPE | sizes)).eval()
    ids = torch.randint(5, 100, (1, 9))
    with torch.no_grad():
        before = model(ids).logits
        after = extend_embeddings(model, {100: (5, 9), 101: (7, 8, 9)}).eval()(ids).logits
    assert torch.equal(after[..., :100], before)
    torch.testing.assert_close(after[..., 100], before[..., [5, 9]].mean(-1))


def test_models_that_cannot_grow_are_refused_in_one_line():
    ibert = IBertForMaskedLM(IBertConfig(vocab_size=100, **SHAPE))
    with pytest.raises(ValueError, match=r"IBertForMaskedLM cannot take more tokens \(.*; leave --extend"):
        extend_embeddings(ibert, {100: (5, 9)})
    perceiver = torch.nn.Linear(3, 3)
    perceiver.get_input_embeddings = lambda: torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="does not tell where its embeddings are"):
        extend_embeddings(perceiver, {5: (1, 2)})


def test_a_model_without_tables_is_refused():
    with pytest.raises(ValueError, match="does not tell where its embeddings are"):
        extend_embeddings(torch.nn.Linear(3, 3), {5: (1, 2)})


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_the_report_counts_pieces_words_and_what_costs_most():
    tokenizer = trained("wordpiece")
    domain, general = count_pieces(tokenizer, DOMAIN * 5), count_pieces(tokenizer, GENERAL)
    report = tokenizer_fit(tokenizer, domain, general)
    assert report.pieces_per_word == sum(len(ids) for ids in tokenizer.encode_batch(DOMAIN)) / len(
        " ".join(DOMAIN).split()
    )
    assert report.general is not None and report.pieces_per_word > 1.25 * report.general and report.fits_badly
    assert report.costliest[0][0] == "cardiomyopathy" and report.costliest[0][2] == 15
    assert "more)" in report.describe() and "it fits badly, --extend-vocabulary may help" in report.describe()
    fine = tokenizer_fit(tokenizer, general, general)
    assert not fine.fits_badly and "(as many)" in fine.describe()
    assert "1.2 to 1.5 is usual" in tokenizer_fit(tokenizer, domain).describe()


def test_only_a_sample_is_looked_at_which_is_of_the_whole():
    tokenizer = trained("bpe")
    texts = (" ".join([word] * 6) for word in ("the", "cat", "cardiomyopathy") for _ in range(3000))
    counts = count_pieces(tokenizer, texts, characters=20_000)
    assert counts.num_words * 7 < 20_000
    per_word = Counter({tokenizer.backend.decode(list(word)).strip(): n for word, n in counts.words.items()})
    assert set(per_word) == {"the", "cat", "cardiomyopathy"}
    assert min(per_word.values()) > 0.9 * max(per_word.values())


def test_tokenizers_of_transformers_own_classes_are_read_back(tmp_path):
    """A class that rebuilds its pipeline from a vocabulary must find the new tokens there."""
    tokenizer = trained("wordpiece")
    tokenizer.save(tmp_path / "plain")
    config = json.loads((tmp_path / "plain/tokenizer_config.json").read_text()) | {"tokenizer_class": "BertTokenizer"}
    (tmp_path / "plain/tokenizer_config.json").write_text(json.dumps(config))
    bert = load_tokenizer(tmp_path / "plain")
    extension = extend_vocabulary(bert, count_pieces(bert, DOMAIN * 20), 20)
    extension.tokenizer.save(tmp_path / "extended")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "extended")
    assert isinstance(loaded, PreTrainedTokenizerFast)
    text = "cardiomyopathy of the heart"
    assert loaded(text)["input_ids"] == extension.tokenizer.encode(text)
    assert len(loaded(text)["input_ids"]) < len(bert.encode(text))
