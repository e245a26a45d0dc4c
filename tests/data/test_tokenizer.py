"""Training, loading and saving tokenizers; what they say about special tokens; encoding without cuts."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from mlm_pytorch.data.tokenizer import choose_vocab_size, load_tokenizer, sample_texts, train_tokenizer
from mlm_pytorch.data.tokenizer import record as module
from mlm_pytorch.evaluation.fill import masks_understood

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TEXTS = ["def add(self, left, right):\n    return left + right", "The cat sat on the mat; the dog did not."] * 50


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS)


def wordpiece(texts=TEXTS, special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), framed=True):
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(special), show_progress=False)
    )
    if framed:
        backend.post_processor = processors.BertProcessing(
            ("[SEP]", backend.token_to_id("[SEP]")), ("[CLS]", backend.token_to_id("[CLS]"))
        )
    return backend


def save_backend(folder, backend, config=None):
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# -- training ----------------------------------------------------------------------------------------------------------


def test_trained_tokenizer(trained):
    special = trained.special
    assert [trained.backend.id_to_token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (special.pad_token_id, special.mask_token_id, special.ids) == (0, 4, (0, 1, 2, 3, 4))
    assert (special.prefix, special.suffix) == ((2,), (3,))
    assert special.num_tokens == trained.backend.get_vocab_size()
    assert trained.unknown_id == 1
    # the mask takes the blank before it, so that what it stands for is " mat" and not "mat"
    assert trained.backend.encode("the [MASK].").tokens == ["[CLS]", "the", " [MASK]", ".", "[SEP]"]


def test_training_is_deterministic(trained):
    assert train_tokenizer(iter(TEXTS)).fingerprint == trained.fingerprint


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(trained, text):
    [ids] = trained.encode_batch([text])
    assert trained.backend.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["[MASK]", "a [SEP] b", "[PAD][CLS]", " [MASK] "])
def test_corpus_text_cannot_write_special_tokens(trained, text):
    [ids] = trained.encode_batch([text])
    assert not set(ids) & set(trained.special.ids)
    assert trained.backend.decode(ids) == text


def test_vocabulary_size():
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwxyz"] * 3
    assert train_tokenizer(words).special.num_tokens % 64 == 0
    assert train_tokenizer(words, vocab_size=300).special.num_tokens == 300
    assert train_tokenizer(["ab"]).special.num_tokens == 261  # 256 bytes, 5 special tokens, and nothing to merge
    sizes = [choose_vocab_size(characters) for characters in (1, 10**6, 10**7, 6 * 10**7, 10**12)]
    assert sizes == [320, 1984, 6336, 15488, 32768]
    with pytest.raises(ValueError, match=r"vocab_size 100 is below 261 .*; choose a larger one"):
        train_tokenizer(TEXTS, vocab_size=100)
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on"):
        train_tokenizer([])


def test_sample_takes_all_that_fits_and_spreads_over_the_rest():
    texts = [f"{i:05d}" for i in range(10_000)]
    assert sample_texts(texts).texts == texts
    sample = sample_texts(iter(texts), max_characters=5_000)
    assert sample.characters == 50_000
    chosen = np.array([int(text) for text in sample.texts])
    assert 2_500 <= 5 * len(chosen) <= 5_000
    assert np.diff([0, *chosen, 10_000]).max() < 50  # even, not only the head


def test_sample_of_one_long_text():
    text = "".join(f"{i:08d}" for i in range(1 << 18))
    sample = sample_texts([text], max_characters=1 << 19)
    assert 1 << 18 <= sum(map(len, sample.texts)) <= 1 << 19
    starts = [text.index(chunk) for chunk in sample.texts]
    assert max(starts) > len(text) // 2


# -- saving and loading ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_again(trained, tmp_path):
    trained.save(tmp_path, model_max_length=128)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.special, loaded.fingerprint, loaded.unknown_id) == (trained.special, trained.fingerprint, 1)
    assert loaded.encode_batch(TEXTS) == trained.encode_batch(TEXTS)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 128


def test_transformers_loads_what_we_save(trained, tmp_path):
    from transformers import AutoTokenizer

    trained.save(tmp_path, model_max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.is_fast
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id) == (4, 0, 2, 3)
    assert theirs.model_max_length == 128
    assert len(theirs) == trained.special.num_tokens
    for text in ["the [MASK] sat.", "the  cat\n", "", "ä€😀"]:
        ids = theirs(text)["input_ids"]
        assert ids == trained.backend.encode(text).ids
    assert theirs(TEXTS[0], add_special_tokens=False)["input_ids"] == trained.encode_batch(TEXTS[:1])[0]
    theirs.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").special == trained.special


def test_fill_mask_pipeline(trained, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, pipeline

    trained.save(tmp_path, model_max_length=64)
    size = trained.special.num_tokens
    config = BertConfig(vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path))
    assert len(fill("the [MASK] sat", top_k=3)) == 3


def test_a_loaded_folder_keeps_its_files(tmp_path):
    folder = save_backend(tmp_path / "a", wordpiece(), {"mask_token": "[MASK]", "pad_token": "[PAD]", "mine": 1})
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.safetensors").write_bytes(b"not ours")
    loaded = load_tokenizer(folder)
    loaded.save(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    loaded.save(tmp_path / "b", model_max_length=77)
    config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert (config["mine"], config["model_max_length"]) == (1, 77)


def test_framing_and_special_ids_of_other_tokenizers(tmp_path):
    backend = wordpiece()
    backend.add_special_tokens(["[EXTRA]"])
    backend.add_tokens(["ordinary"])
    loaded = load_tokenizer(save_backend(tmp_path / "a", backend))
    assert (loaded.special.prefix, loaded.special.suffix) == ((2,), (3,))
    extra, ordinary = backend.token_to_id("[EXTRA]"), backend.token_to_id("ordinary")
    assert loaded.special.ids == (0, 1, 2, 3, 4, extra)
    assert loaded.special.num_tokens == ordinary + 1
    unframed = load_tokenizer(save_backend(tmp_path / "b", wordpiece(framed=False)))
    assert (unframed.special.prefix, unframed.special.suffix) == ((), ())
    assert unframed.encode_batch(["the \u4e00 cat"])[0].count(1) == 1  # [UNK] is special, and may stand in a text


def test_baked_in_truncation_and_padding_are_switched_off(tmp_path):
    backend = wordpiece()
    plain = load_tokenizer(save_backend(tmp_path / "a", backend))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    loaded = load_tokenizer(save_backend(tmp_path / "b", backend))
    text = "the cat sat on the mat " * 10
    assert loaded.encode_batch([text, "cat"]) == plain.encode_batch([text, "cat"])
    assert len(loaded.backend.encode(text)) == len(plain.backend.encode(text)) > 60
    assert loaded.fingerprint == plain.fingerprint  # they encode alike


def test_a_corpus_cannot_write_tokens_that_a_model_looks_up(tmp_path):
    names = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    unigram = Backend(models.Unigram([(name, 0.0) for name in names] + [("▁", -2.0), ("a", -3.0), ("<", -4.0)], 3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    words = Backend(models.WordLevel({name: id for id, name in enumerate([*names, "a"])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, backend in {"unigram": unigram, "words": words}.items():
        backend.add_special_tokens(names)
        backend.add_special_tokens(["<more>"])
        backend.add_tokens(["plain"])
        loaded = load_tokenizer(
            save_backend(tmp_path / name, backend, {"mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"})
        )
        plain, unknown = backend.token_to_id("plain"), loaded.unknown_id
        assert loaded.encode("</s> a plain <mask> <more>")[0] == 2
        ids = loaded.encode_batch(["</s> a plain <mask> <more>", "a plain"])
        assert not set(ids[0]) & set(loaded.special.ids) - {unknown}
        assert plain in ids[0]
        assert ids[1] == backend.encode("a plain").ids


def test_fingerprint_tells_vocabularies_apart(tmp_path, trained):
    assert trained.fingerprint != train_tokenizer([*TEXTS, *["quite another quibble"] * 9]).fingerprint
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [
        " ".join(merge) for merge in content["model"]["merges"]
    ]  # as files before 2024 have it
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint


def test_loading_needs_no_transformers(trained, tmp_path):
    trained.save(tmp_path)
    program = (
        "import sys; from mlm_pytorch.data.tokenizer import load_tokenizer; "
        "load_tokenizer(sys.argv[1]).save(sys.argv[1]); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_folder_of_older_files_is_converted(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_batch(["The cats"]) == [[5, 6, 7]]
    assert loaded.special.mask_token_id == 4


@pytest.mark.parametrize("size", [1, 5, 50])
def test_long_texts_are_encoded_in_parts_with_the_same_ids(trained, tmp_path, monkeypatch, size):
    text = "The cat's  mat \n\n    return left[0] + 'right'  \t x" * size
    other = load_tokenizer(save_backend(tmp_path / "a", wordpiece()))
    for tokenizer in (trained, other):
        texts = [text, "", "cat", text[:-7]]
        expected = tokenizer.encode_batch(texts)
        monkeypatch.setattr(module, "LONG_TEXT_CHARACTERS", 40)
        ids, lengths = tokenizer.encode_arrays(texts)
        monkeypatch.undo()
        assert ids.tolist() == list(chain.from_iterable(expected))
        assert lengths.tolist() == [len(ids) for ids in expected]
        assert ids.dtype == np.uint32


def test_long_texts_without_white_space(trained, monkeypatch):
    monkeypatch.setattr(module, "LONG_TEXT_CHARACTERS", 40)
    text = "nowhitespaceatall" * 30
    assert trained.encode_arrays([text])[0].tolist() == trained.encode_batch([text])[0]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer folder .*nowhere does not exist; give the folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no tokenizer \(no tokenizer.json\)"):
        load_tokenizer(tmp_path)


def test_tokenizers_that_cannot_serve(tmp_path):
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    folder = save_backend(tmp_path / "a", wordpiece(special=special))
    with pytest.raises(ValueError, match=r'tokenizer .*a has no mask token; choose .* name it as "mask_token"'):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"mask_token": "<blank>"}')
    with pytest.raises(ValueError, match=r"names '<blank>' as its mask_token, which is not in its vocabulary"):
        load_tokenizer(folder)
    folder = save_backend(tmp_path / "b", wordpiece(special=("[UNK]", "[CLS]", "[SEP]", "[MASK]")))
    with pytest.raises(ValueError, match="has no padding token"):
        load_tokenizer(folder)


def test_roles_may_have_unusual_names(tmp_path):
    backend = wordpiece(special=("<void>", "[UNK]", "[CLS]", "[SEP]", "<blank>"))
    config = {"mask_token": {"content": "<blank>", "lstrip": False}, "pad_token": "<void>"}
    assert load_tokenizer(save_backend(tmp_path / "a", backend, config)).special.mask_token_id == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", r"tokenizer.json is not JSON \(.*\); copy or download it again"),
        (
            "tokenizer.json",
            '{"version": "1.0"}',
            r"tokenizer.json cannot be read by tokenizers .*\(.*\); copy it again",
        ),
        ("tokenizer.json", b"\xff\xff", r"tokenizer.json is not JSON"),
        ("tokenizer_config.json", "nonsense", r"tokenizer_config.json is not JSON"),
    ],
)
def test_damaged_files(tmp_path, trained, name, content, message):
    trained.save(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared tokenizer is not here")
def test_the_shared_tokenizer(tmp_path):
    loaded = load_tokenizer(SHARED / "mix10m" / "tokenizer-16k")
    assert (loaded.special.num_tokens, loaded.special.mask_token_id, loaded.special.prefix) == (16384, 4, (2,))
    loaded.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == loaded.fingerprint


def test_spans_say_which_characters_a_token_stands_for(trained):
    text = "The cat  [MASK] sat."
    ids, spans = trained.encode_spans(text)
    assert [ids] == trained.encode_batch([text]) and len(spans) == len(ids)
    assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")
    ids, spans = trained.encode_spans(text, understood=True)
    start, end = spans[ids.index(trained.special.mask_token_id)]
    assert text[start:end].strip() == "[MASK]"


@pytest.mark.parametrize("config", [None, "[]"])
def test_a_length_is_kept_by_a_tokenizer_without_a_configuration(trained, tmp_path, config):
    trained.save(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").unlink()
    if config is not None:
        (tmp_path / "a" / "tokenizer_config.json").write_text(config)
    load_tokenizer(tmp_path / "a").save(tmp_path / "b", model_max_length=77)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "b").model_max_length == 77
    assert load_tokenizer(tmp_path / "b").special == load_tokenizer(tmp_path / "a").special


@pytest.mark.parametrize("model", ["bpe", "words", "unigram", "wordpiece"])
@pytest.mark.parametrize("added", [True, False])
def test_a_corpus_cannot_write_a_mask_that_is_not_flagged_special(tmp_path, model, added):
    """One that is an added token without the flag, or lies in the vocabulary alone, with a name in the config."""
    names = ["[PAD]", "[UNK]", "[MASK]"]
    tokens = [*names, *"[]ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    models_by_name = {
        "bpe": lambda: models.BPE(vocabulary, [], unk_token="[UNK]"),
        "words": lambda: models.WordLevel(vocabulary, unk_token="[UNK]"),
        "unigram": lambda: models.Unigram([(token, -1.0) for token in tokens], 1),
        "wordpiece": lambda: models.WordPiece(vocabulary, unk_token="[UNK]"),
    }
    backend = Backend(models_by_name[model]())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if added:
        backend.add_tokens(["[MASK]", "plain"])
    config = dict(zip(("pad_token", "unk_token", "mask_token"), names, strict=True))
    loaded = load_tokenizer(save_backend(tmp_path, backend, config))
    assert loaded.special.mask_token_id == 2
    texts = ["[MASK] A [MASK][MASK] [PAD]", "A[MASK]B", "A B"]
    ids = loaded.encode_batch(texts)
    assert not {0, 2} & set(chain(*ids))
    assert ids[0].count(3) == (4 if model in ("bpe", "unigram") else 0)  # else a word that the vocabulary lacks
    assert ids[2] == [5, 6]
    assert not {0, 2} & set(loaded.encode_arrays(texts)[0].tolist())
    if added:
        assert backend.token_to_id("plain") in loaded.encode_batch(["A plain B"])[0]
    assert loaded.encode("A [MASK] B") == [5, 2, 6]
    assert loaded.encode(masks_understood(loaded, "A [MASK]")[0]) == [5, 2]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_corpus_cannot_write_tokens_that_bpe_makes(tmp_path, legacy):
    """Those of one character, of merges, and, with `ignore_merges`, of a whole word."""
    tokens = ["_", "#", "?", "a", "b", "ab", "<", "<a", "<ab", "#b", "[P]"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = [("a", "b"), ("<", "ab"), ("<", "a"), ("#", "b")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="?", ignore_merges=not legacy))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["_", "#", "?", "<ab", "[P]"])
    save_backend(tmp_path, backend, {"pad_token": "_", "mask_token": "#", "unk_token": "?"})
    if legacy:  # as files before 2024 have merges
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path)
    part = [2, 4] if legacy else [9]  # a whole word, and no special one
    assert loaded.encode_batch(["a#_b", "<ab", "#b", "ab <", "?"]) == [[3, 2, 2, 4], [6, 5], part, [5, 6], [2]]
    assert not set(loaded.encode_batch(["[P]"])[0]) & {0, 1, 8, 10}
    assert loaded.encode("a#_b") == [3, 1, 0, 4]  # written by a person, they are what they say
