"""Every kind of tokenizer: what it makes of its alphabet, how it comes back, that transformers reads it alike."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data.tokenizer import (
    TOKENIZER_KINDS,
    load_tokenizer,
    parse_kind,
    record,
    tokenizer_for_ids,
    train_tokenizer,
)
from mlm_pytorch.masking.words import derive_words

SEQUENCES = Path(__file__).parents[2].parent / "shared" / "data" / "sequences"
TEXTS = [
    "def add(self, left, right):\n    return left + right",
    "The cat sat on the mat; the dog did not.",
    "Wörter – 你好, 世界!",
] * 20
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DNA = "ACGTNRYSWKMBDHV-"
PROTEIN = "ACDEFGHIKLMNPQRSTVWYBJOUXZ*-."


@pytest.fixture(scope="module")
def tokenizers():
    """One of each kind, and of ids."""
    trained = {kind: train_tokenizer(TEXTS, kind=kind) for kind in (*TOKENIZER_KINDS, "kmer:3")}
    return trained | {"ids": tokenizer_for_ids(50, mask_token_id=1, pad_token_id=0, special_ids=[2, 12])}


# -- what holds for all ------------------------------------------------------------------------------------------------

PROBES = {
    "bpe": "the [MASK] sat;  Wörter\n[MASK]",
    "wordpiece": "The [MASK] sat; wörter 你 ☃",
    "unigram": "the [MASK] sat;\n  Wörter ☃ <0x0A>",
    "characters": "the [MASK]at ☃☃",
    "bytes": "the [MASK]at ☃",
    "kmer": "acgtUu ACGTAC[MASK]NNGATTACA?",
    "kmer:3": "ACGTAC[MASK]NNGATTACA",
    "amino-acids": "MKT[MASK]LVx*-\nmk1",
    "ids": "2 17 4 [MASK] 12 22 212\t49 [PAD]".replace("212", "21"),
}


@pytest.mark.parametrize("kind", PROBES)
def test_transformers_reads_it_as_we_do(tokenizers, tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer, text = tokenizers[kind], PROBES[kind]
    tokenizer.save(tmp_path / "a", model_max_length=64)
    theirs, loaded = AutoTokenizer.from_pretrained(tmp_path / "a"), load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode(text)
    assert theirs(text)["input_ids"] == loaded.encode(text) == ids
    assert theirs.decode(ids) == tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert (theirs.mask_token_id, theirs.pad_token_id) == (
        tokenizer.special.mask_token_id,
        tokenizer.special.pad_token_id,
    )
    assert len(theirs) == tokenizer.special.num_tokens
    assert (loaded.special, loaded.fingerprint, loaded.unknown_id) == (
        tokenizer.special,
        tokenizer.fingerprint,
        tokenizer.unknown_id,
    )
    theirs.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert (again.special, again.encode(text)) == (tokenizer.special, ids)


@pytest.mark.parametrize("kind", [kind for kind in PROBES if kind != "ids"])
def test_special_tokens_come_first_and_frame(tokenizers, kind):
    tokenizer = tokenizers[kind]
    special = tokenizer.special
    assert [tokenizer.backend.id_to_token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (special.ids, special.prefix, special.suffix) == ((0, 1, 2, 3, 4), (2,), (3,))
    assert (special.mask_token_id, special.pad_token_id, tokenizer.unknown_id) == (4, 0, 1)
    assert tokenizer.kind == {"kmer": "kmer:6"}.get(kind, kind)
    assert train_tokenizer(iter(TEXTS), kind=kind).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", [kind for kind in PROBES if kind != "ids"])
@pytest.mark.parametrize("text", ["[MASK]", "a [SEP] b", "[PAD][CLS]", " [MASK] "])
def test_a_corpus_cannot_write_special_tokens(tokenizers, kind, text):
    [ids] = tokenizers[kind].encode_batch([text])
    assert ids
    assert not set(ids) & {0, 2, 3, 4}


def test_a_unigram_vocabulary_does_not_learn_their_names():
    tokenizer = train_tokenizer(["[MASK] [SEP] <0x0A> words"] * 200, kind="unigram")
    assert not set(tokenizer.encode_batch(["[MASK] [SEP] <0x0A>"])[0]) & set(range(5))
    assert tokenizer.backend.decode(tokenizer.encode_batch(["[MASK] <0x0A>"])[0]) == "[MASK] <0x0A>"


# -- round trips -------------------------------------------------------------------------------------------------------


@given(text=ANY_TEXT)
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_bytes_bring_back_any_text(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    assert tokenizer.backend.decode(tokenizer.encode_batch([text])[0]) == text


@given(text=ANY_TEXT)
def test_unigram_brings_back_any_text_but_the_first_blank(tokenizers, text):
    text = text.replace("▁", "")
    tokenizer = tokenizers["unigram"]
    ids = tokenizer.encode_batch([text])[0]
    assert 1 not in ids
    assert tokenizer.backend.decode(ids) == text.removeprefix(" ")


@given(text=ANY_TEXT)
def test_wordpiece_cuts_at_blanks_and_punctuation(tokenizers, text):
    tokenizer = tokenizers["wordpiece"]
    [ids] = tokenizer.encode_batch([text])
    assert all(id not in (0, 2, 3, 4) for id in ids)
    if 1 not in ids:
        written = "".join(tokenizer.backend.id_to_token(id).removeprefix("##") for id in ids)
        assert written == re.sub(r"\s", "", tokenizer.backend.normalizer.normalize_str(text))
        assert tokenizer.encode_batch([tokenizer.backend.decode(ids)])[0] == ids


@given(text=ANY_TEXT)
def test_characters_are_one_token_each(tokenizers, text):
    tokenizer = tokenizers["characters"]
    [ids] = tokenizer.encode_batch([text])
    assert len(ids) == len(text)
    known = "".join(char for char, id in zip(text, ids, strict=True) if id != 1)
    assert tokenizer.backend.decode(ids) == known
    assert set(known) == set(text) & set("".join(TEXTS))


@given(text=ANY_TEXT)
def test_bytes_are_ids_from_5(tokenizers, text):
    assert tokenizers["bytes"].encode_batch([text])[0] == [5 + byte for byte in text.encode()]


def kmers_of(text: str, k: int) -> list[str]:
    """A slow reference: a k-mer where the next k letters are nucleotides, else one letter."""
    text = re.sub(r"\s", "", text).upper().replace("U", "T")
    tokens = []
    while text:
        length = k if len(text) >= k and set(text[:k]) <= set("ACGT") else 1
        tokens.append(text[:length])
        text = text[length:]
    return tokens


@given(text=st.text(st.sampled_from("ACGT" * 8 + "acgtuUNn-RryK \n")))
@pytest.mark.parametrize(("kind", "k"), [("kmer", 6), ("kmer:3", 3)])
def test_kmers(tokenizers, kind, k, text):
    tokenizer = tokenizers[kind]
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    assert encoding.tokens == kmers_of(text, k)
    assert tokenizer.encode_batch([text])[0] == encoding.ids
    assert tokenizer.backend.decode(encoding.ids) == "".join(encoding.tokens)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_every_k(k):
    tokenizer = train_tokenizer([], kind=f"kmer:{k}")
    assert tokenizer.special.num_tokens == 5 + len(DNA) + (4**k if k > 1 else 0)
    some = "".join(letters[0] for letters in product("ACGT", repeat=3)) + "GATTACA"
    assert tokenizer.encode(some + "N[MASK]")[-3:-1] == [5 + DNA.index("N"), 4]
    assert tokenizer.backend.decode(tokenizer.encode(some)) == some


@given(text=st.text(st.sampled_from(PROTEIN + PROTEIN.lower() + "\n ")))
def test_amino_acids(tokenizers, text):
    tokenizer = tokenizers["amino-acids"]
    letters = re.sub(r"\s", "", text).upper()
    [ids] = tokenizer.encode_batch([text])
    assert ids == [5 + PROTEIN.index(letter) for letter in letters]
    assert tokenizer.backend.decode(ids) == letters


def test_a_mask_stands_for_one_token(tokenizers):
    written = {
        "characters": (["t", "h", "e", " ", "[MASK]", "a", "t"], "the [MASK]at"),
        "bytes": (["t", "h", "e", "Ġ", "[MASK]", "a", "t"], "the [MASK]at"),
        "kmer:3": (["ACG", "[MASK]", "TTT"], "acg [MASK] ttt"),
        "amino-acids": (["M", "K", "T", "[MASK]", "L", "V"], "MKT[MASK]LV"),
    }
    for kind, (tokens, text) in written.items():
        assert tokenizers[kind].backend.encode(text, add_special_tokens=False).tokens == tokens
    for kind, token in {"bpe": "Ġsat", "unigram": "▁sat", "wordpiece": "sat"}.items():
        tokens = tokenizers[kind].backend.encode("the [MASK] sat", add_special_tokens=False).tokens
        assert tokens.index(" [MASK]") == len(tokens) - 1 - len(
            tokenizers[kind].backend.encode(" sat", add_special_tokens=False).tokens
        )
        assert token.endswith(tokens[-1].removeprefix("##"))


# -- whole words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "starts"),
    [
        ("bytes", "the mat", [0, 3]),
        ("characters", "the mat;", [0, 3, 4, 7]),
        ("wordpiece", "the, mat", [0, 3, 4]),
        ("unigram", "the mat", [0, 3]),
        ("kmer", "ACGTACGATTACA", [0, 6, 12]),
    ],
)
def test_whole_words(tokenizers, kind, text, starts):
    import torch

    tokenizer = tokenizers[kind]
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    table = derive_words(tokenizer.backend, tokenizer.special.num_tokens)
    begins = table.starts_word(torch.tensor([encoding.ids]))[0].tolist()
    found = [begin for (begin, _), starts in zip(encoding.offsets, begins, strict=True) if starts]
    assert [len(text[:place].replace(" ", "")) if kind == "wordpiece" else place for place in found] == starts


def test_a_protein_has_no_words(tokenizers):
    with pytest.raises(ValueError, match="hold no trace of word boundaries .*; select tokens or spans"):
        derive_words(tokenizers["amino-acids"].backend)


# -- long texts --------------------------------------------------------------------------------------------------------


def random_text(letters: str, length: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(letters), size=length))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "characters", "bytes", "kmer", "kmer:3", "amino-acids"])
def test_a_long_sequence_is_encoded_in_parts_with_the_same_ids(tokenizers, monkeypatch, kind):
    tokenizer = tokenizers[kind]
    letters = {"amino-acids": PROTEIN, "kmer": "ACGT" * 20 + "N", "kmer:3": "ACGT" * 20 + "N"}.get(kind, "addleftrigh")
    run = random_text(letters, 10_000)
    for text in (run, re.sub("(.{70})", r"\1\n", run), re.sub("(.{64})", r"\1NN\n", run)):
        expected = tokenizer.encode_batch([text])[0]
        monkeypatch.setattr(record, "LONG_TEXT_CHARACTERS", 1500)
        assert len(list(tokenizer._encode_long(text))) > 5
        ids, lengths = tokenizer.encode_arrays([text, "A"])
        monkeypatch.undo()
        assert ids.tolist() == expected + tokenizer.encode_batch(["A"])[0]
        assert lengths[0] == len(expected)


def test_unigram_keeps_its_ids_in_long_texts(tokenizers, monkeypatch):
    tokenizer, long = tokenizers["unigram"], "the cat sat on the mat " * 300
    for text in (long, long.replace(" ", "")):
        expected = tokenizer.encode_batch([text])[0]
        monkeypatch.setattr(record, "LONG_TEXT_CHARACTERS", 1000)
        assert tokenizer.encode_arrays([text])[0].tolist() == expected
        monkeypatch.undo()


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_ids_are_their_numbers(tokenizers):
    tokenizer = tokenizers["ids"]
    assert tokenizer.encode("12 2 22 [MASK]\n4 [PAD]49") == [12, 2, 22, 1, 4, 0, 49]
    assert tokenizer.backend.decode([12, 2, 22, 1, 0], skip_special_tokens=False) == "12 2 22 [MASK] [PAD]"
    assert tokenizer.encode_batch(["7 8", ""]) == [[7, 8], []]
    assert (tokenizer.special.ids, tokenizer.special.prefix, tokenizer.special.suffix) == ((0, 1, 2, 12), (), ())
    assert (tokenizer.special.num_tokens, tokenizer.unknown_id, tokenizer.kind) == (50, None, "ids")


@given(
    ids=st.lists(st.integers(0, 299), max_size=20),
    reserved=st.lists(st.integers(0, 299), min_size=2, max_size=5, unique=True),
)
def test_any_ids_come_back(ids, reserved):
    num_tokens = 1 + max([*ids, *reserved])
    mask, pad, *more = reserved
    tokenizer = tokenizer_for_ids(num_tokens, mask_token_id=mask, pad_token_id=pad, special_ids=more)
    assert tokenizer.encode(tokenizer.backend.decode(ids, skip_special_tokens=False)) == ids
    assert set(tokenizer.special.ids) == {mask, pad, *more}


def test_special_tokens_are_appended_to_ids():
    both = tokenizer_for_ids(10, add_special_tokens=True)
    assert (both.special.mask_token_id, both.special.pad_token_id, both.special.num_tokens) == (10, 11, 12)
    one = tokenizer_for_ids(10, mask_token_id=3, add_special_tokens=True)
    assert (one.special.mask_token_id, one.special.pad_token_id, one.special.num_tokens) == (3, 10, 11)
    assert one.encode("9 [MASK] [PAD]") == [9, 3, 10]


def test_a_hundred_thousand_ids(tmp_path):
    tokenizer = tokenizer_for_ids(100_000, mask_token_id=1, pad_token_id=0)
    assert tokenizer.encode("99999 [MASK] 10") == [99_999, 1, 10]


@pytest.mark.parametrize("text", ["a", "50", "1", "007", "-3", "1.5", "7,8"])
def test_a_word_that_is_no_id(tokenizers, text):
    for encode in (tokenizers["ids"].encode, lambda text: tokenizers["ids"].encode_batch([text])):
        with pytest.raises(
            ValueError, match=r"none of the tokenizer's 50 tokens, .*; write known ones .* numbers alone"
        ):
            encode(f"7 {text}")


@pytest.mark.parametrize(
    ("num_tokens", "options", "message"),
    [
        (0, {}, "num_tokens 0 is not positive; give the number of ids"),
        (2**31, {}, "num_tokens 2147483648 is more than the 4,194,304 ids of the largest vocabulary; renumber them"),
        (9, {}, "mask_token_id and pad_token_id not given; .*--mask-token-id.*--add-special-tokens"),
        (9, {"mask_token_id": 1}, "pad_token_id not given; name the ids"),
        (9, {"mask_token_id": 1, "pad_token_id": 1}, "mask_token_id and pad_token_id are both 1; .* name two ids"),
        (9, {"mask_token_id": 9, "pad_token_id": 1}, "mask_token_id 9 is outside the ids 0 to 8; raise num_tokens"),
        (9, {"mask_token_id": -1, "add_special_tokens": True}, "mask_token_id -1 is outside"),
        (9, {"mask_token_id": 2, "pad_token_id": 1, "special_ids": [3, 12]}, "special id 12 is outside"),
        (
            9,
            {"mask_token_id": 2, "pad_token_id": 1, "add_special_tokens": True},
            "mask_token_id 2 and pad_token_id 1 are both given",
        ),
    ],
)
def test_ids_that_cannot_be(num_tokens, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_for_ids(num_tokens, **options)


# -- which kind, and how large -----------------------------------------------------------------------------------------


def test_kinds_as_they_are_written():
    assert [parse_kind(kind) for kind in ("bpe", "kmer", "kmer:3")] == [("bpe", 6), ("kmer", 6), ("kmer", 3)]
    for kind in ("BPE", "", "kmers", "bpe:6", "3mer"):
        with pytest.raises(
            ValueError, match=f"tokenizer kind '{kind}' is unknown; choose one of bpe, wordpiece, .*kmer"
        ):
            parse_kind(kind)
    for kind in ("kmer:", "kmer:0", "kmer:9", "kmer:-1", "kmer:six", "kmer:²"):
        with pytest.raises(ValueError, match=f"tokenizer kind '{kind}' has no k from 1 to 8"):
            parse_kind(kind)


def test_settled_alphabets_read_nothing_and_have_their_size():
    def untouched():
        raise AssertionError
        yield

    for kind, size in {"bytes": 261, "kmer": 5 + 16 + 4096, "amino-acids": 34}.items():
        assert train_tokenizer(untouched(), kind=kind).special.num_tokens == size
        assert train_tokenizer(untouched(), size, kind).special.num_tokens == size
        with pytest.raises(ValueError, match=f"vocab_size 300 is given, but the alphabet of {kind}.* makes it {size}"):
            train_tokenizer(untouched(), 300, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bpe", r"vocab_size 5 is below 261 \(5 special tokens and 256 bytes\); choose a larger one"),
        ("wordpiece", r"vocab_size 5 is below \d+ \(5 special tokens, \d+ characters and \d+ inside words\)"),
        ("unigram", r"vocab_size 5 is below \d+ \(5 special tokens, 256 bytes and \d+ characters\)"),
        ("characters", r"vocab_size 5 is below 6 \(5 special tokens and a character\)"),
    ],
)
def test_too_small_a_vocabulary(kind, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(TEXTS, 5, kind)
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on"):
        train_tokenizer([], kind=kind)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_sizes_of_what_is_learned(kind):
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwxyz"] * 3
    assert train_tokenizer(words, kind=kind).special.num_tokens % 64 == 0
    assert train_tokenizer(words, 330, kind).special.num_tokens == 330


def test_characters_keep_the_most_frequent():
    tokenizer = train_tokenizer(["aaabbc"], 7, "characters")
    assert tokenizer.encode_batch(["abc"]) == [[5, 6, 1]]


def test_characters_too_rare_to_learn():
    texts = ["a cat sat on a mat " * 1000, "☃"]  # one in more than 10,000
    assert train_tokenizer(texts, kind="wordpiece").encode_batch(["☃"]) == [[1]]
    tokenizer = train_tokenizer(texts, kind="unigram")
    assert len(tokenizer.encode_batch(["☃"])[0]) == 4
    assert tokenizer.backend.decode(tokenizer.encode_batch(["☃"])[0]) == "☃"


def test_wordpiece_cuts_words_that_are_too_long_for_it():
    tokenizer = train_tokenizer(["MKTAYIAKQR" * 30, "RQKAIYATKM" * 40] * 5, kind="wordpiece")
    [ids] = tokenizer.encode_batch(["MKTAYIAKQR" * 50])
    assert 1 not in ids
    assert sum(not tokenizer.backend.id_to_token(id).startswith("##") for id in ids) == 5


# -- real sequences ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proteins():
    if not SEQUENCES.exists():
        pytest.skip("the shared sequences are not here")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(SEQUENCES / "proteins.parquet")["sequence"].to_pylist()


@pytest.fixture(scope="module")
def reads():
    if not SEQUENCES.exists():
        pytest.skip("the shared sequences are not here")
    lines = (SEQUENCES / "metagenomics.fasta").read_text().splitlines()
    return [line for line in lines if not line.startswith(">")]


def test_real_proteins(proteins):
    tokenizer = train_tokenizer(proteins)
    assert tokenizer.kind == "amino-acids"
    encoded = tokenizer.encode_batch(proteins[:500])
    assert [tokenizer.backend.decode(ids) for ids in encoded] == proteins[:500]
    assert not any(set(ids) & set(tokenizer.special.ids) for ids in encoded)


def test_real_dna(reads):
    tokenizer = train_tokenizer(reads)
    assert tokenizer.kind == "kmer:6"
    encoded = tokenizer.encode_batch(reads)
    assert [tokenizer.backend.decode(ids) for ids in encoded] == reads
    assert sum(map(len, encoded)) < sum(map(len, reads)) / 5.9


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_sequences_can_be_learned_from(proteins, kind):
    tokenizer = train_tokenizer(proteins[:100], 400 if kind != "unigram" else 600, kind)
    [ids] = tokenizer.encode_batch(proteins[100:101])
    assert len(ids) < len(proteins[100])
    assert tokenizer.backend.decode(ids).replace(" ", "") == proteins[100]
