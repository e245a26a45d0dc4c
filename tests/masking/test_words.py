"""Words from ids alone, against the tokenizer's own `word_ids()`: families of tokenizers × a text in forty scripts."""

import gzip
import json
import random
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mlm_pytorch.masking import derive_words
from mlm_pytorch.masking.words import _byte_chars, _split_bytes

LINES = [line for line in (Path(__file__).parent / "multilingual.txt").read_text(encoding="utf-8").splitlines() if line]
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mix10m"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ByteLevel, Metaspace, Sequence = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace, pre_tokenizers.Sequence

BYTE_LEVEL = {
    "byte-level": lambda: ByteLevel(add_prefix_space=False),
    "byte-level, prefix space": lambda: ByteLevel(add_prefix_space=True),
    "byte-level, single digits": lambda: Sequence(
        [pre_tokenizers.Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "byte-level, GPT-4's cuts": lambda: Sequence(
        [pre_tokenizers.Split(Regex(GPT4), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}
UNIGRAM = {
    "unigram": lambda: Metaspace(),
    "unigram, no prefix": lambda: Metaspace(prepend_scheme="never"),
    "unigram, words first": lambda: Sequence([pre_tokenizers.WhitespaceSplit(), Metaspace()]),
    "unigram, punctuation apart": lambda: Sequence(
        [Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    ),
}
FAMILIES = ["wordpiece", *BYTE_LEVEL, *UNIGRAM, "BPE, metaspace", "BPE, suffix", "whole words"]


@cache
def tokenizer_of(family: str, size: int = 1500) -> Tokenizer:
    common = {"vocab_size": size, "special_tokens": SPECIALS, "show_progress": False}
    if family == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**common)
    elif family in BYTE_LEVEL:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = BYTE_LEVEL[family]()
        trainer = trainers.BpeTrainer(**common, initial_alphabet=ByteLevel.alphabet())
    elif family in UNIGRAM:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = UNIGRAM[family]()
        trainer = trainers.UnigramTrainer(**common, unk_token="[UNK]")
    elif family == "BPE, metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Metaspace()
        trainer = trainers.BpeTrainer(**common)
    elif family == "BPE, suffix":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(**common, end_of_word_suffix="</w>")
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**common)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def differing(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, int]:
    """(boundaries that differ from word_ids(), boundaries), between neighbouring tokens."""
    words = derive_words(tokenizer)
    wrong = total = 0
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        if len(encoding.ids) < 2:
            continue
        found = words.starts_word(torch.tensor(encoding.ids))[1:].tolist()
        own = encoding.word_ids
        truth = [left != right for left, right in pairwise(own)]
        wrong += sum(a != b for a, b in zip(found, truth, strict=True))
        total += len(truth)
    return wrong, total


def allowed(family: str, share: float) -> float:
    """GPT-4's rule cuts runs of digits in threes, which ids tell only where the vocabulary holds all such threes."""
    return 0.004 if "GPT-4" in family else share


@pytest.mark.parametrize("family", FAMILIES)
def test_forty_scripts(family):
    wrong, total = differing(tokenizer_of(family), LINES)
    assert total > 500
    assert wrong <= total * allowed(family, 0.001)


@pytest.mark.parametrize("family", FAMILIES)
def test_scripts_run_together(family):
    """Snippets of all scripts in random order with and without blanks: more kinds of neighbours than any text has.

    What remains are runs of line breaks, which are cut according to what comes after them.
    """
    dice = random.Random(0)
    snippets = [snippet for line in LINES for snippet in line.split(" ")]
    gaps = [" "] * 6 + ["", "", "\n", "  ", ", ", "'s "]
    texts = ["".join(dice.choice(snippets) + dice.choice(gaps) for _ in range(12)) for _ in range(150)]
    wrong, total = differing(tokenizer_of(family), texts)
    assert total > 3000
    assert wrong <= total * allowed(family, 0.002)


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_characters_cut_into_bytes(family):
    """No merges learnt beyond bytes of these scripts: nearly every character lies across tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTE_LEVEL[family]()
    trainer = trainers.BpeTrainer(vocab_size=261 + 40, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LINES[:1], trainer)
    wrong, total = differing(tokenizer, LINES)
    assert total > 4000
    assert wrong <= total * allowed(family, 0.0005)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared corpus mix10m")
def test_the_corpus_and_its_tokenizer():
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizer-16k" / "tokenizer.json"))
    with gzip.open(SHARED / "valid.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(300), strict=False)]
    wrong, total = differing(tokenizer, texts)
    assert total > 20_000 and wrong <= total * 0.0001


def test_a_leading_space_rule_would_fail_here():
    """The rule "a word begins where a token begins with a space" is wrong at more than a tenth of these boundaries."""
    tokenizer = tokenizer_of("byte-level")
    wrong = total = 0
    for encoding in tokenizer.encode_batch(LINES[:5]):
        own = encoding.word_ids
        for i in range(1, len(own)):
            total += 1
            wrong += (own[i] != own[i - 1]) != encoding.tokens[i].startswith("Ġ")
    assert wrong > total / 10


@pytest.mark.parametrize("family", ["wordpiece", "byte-level", next(iter(UNIGRAM))])
def test_a_rule_of_gaps_between_offsets_would_fail_here(family):
    """transformers' collator lets a word begin where a token's offsets do not join the last one's."""
    tokenizer = tokenizer_of(family)
    encoding = tokenizer.encode("The cook's old knife, sharpened yesterday, cut seven ripe tomatoes.")
    truth = [left != right for left, right in pairwise(encoding.word_ids)]
    gaps = [left[1] != right[0] for left, right in pairwise(encoding.offsets)]
    ours = derive_words(tokenizer).starts_word(torch.tensor(encoding.ids))[1:].tolist()
    assert ours == truth
    assert sum(gaps) < sum(truth)


def test_where_documents_are_cut_does_not_matter_to_their_neighbours():
    """A piece that begins in the middle of a character gives the same words alone, in a row and in a pack."""
    tokenizer = tokenizer_of("byte-level", size=300)
    words = derive_words(tokenizer)
    ids = torch.tensor(tokenizer.encode("".join(LINES[30:34])).ids)
    for cut in range(1, 60):
        cu_seqlens = torch.tensor([0, cut, cut, ids.numel()])
        packed = words.starts_word(ids, cu_seqlens=cu_seqlens)
        alone = [words.starts_word(part[None])[0] for part in (ids[:cut], ids[cut:])]
        assert packed.equal(torch.cat(alone))


def test_specials_and_added_tokens_stand_alone():
    tokenizer = Tokenizer.from_str(tokenizer_of("byte-level").to_str())
    tokenizer.add_tokens(["<tag>"])
    words = derive_words(tokenizer, num_tokens=tokenizer.get_vocab_size() + 3)
    assert words.num_tokens == tokenizer.get_vocab_size() + 3
    letter, tag, beyond = tokenizer.token_to_id("a"), tokenizer.token_to_id("<tag>"), words.num_tokens - 1
    for lone in (0, 4, tag, beyond):
        assert words.starts_word(torch.tensor([letter, letter, lone, letter, letter])).tolist() == [
            True, False, True, True, False,
        ]  # fmt: skip


def test_what_the_vocabulary_lacks_stays_in_its_word():
    tokenizer = tokenizer_of("BPE, metaspace")
    words, encoding = derive_words(tokenizer), tokenizer.encode("the \U0001f9ffthe the")
    assert "[UNK]" in encoding.tokens
    own = encoding.word_ids
    assert words.starts_word(torch.tensor(encoding.ids)).tolist() == [
        i == 0 or own[i] != own[i - 1] for i in range(len(own))
    ]


def test_sentencepiece_style_without_a_pre_tokenizer():
    """Blanks become marks in the normalizer, and `word_ids()` sees one word; the marks still tell."""
    vocab = {"[UNK]": 0, "\u2581": 1, "a": 2, "b": 3, "\u2581a": 4, "<0xE4>": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "a")], unk_token="[UNK]", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    words = derive_words(tokenizer)
    ids = tokenizer.encode("ab ab b").ids
    assert [tokenizer.id_to_token(i) for i in ids] == ["a", "b", "\u2581a", "b", "\u2581", "b"]
    assert words.starts_word(torch.tensor(ids)).tolist() == [True, False, True, False, True, False]


def test_transformers_tokenizers_are_taken_as_they_are():
    backend = tokenizer_of("wordpiece")
    wrapped = SimpleNamespace(backend_tokenizer=backend)
    assert derive_words(wrapped).facts.equal(derive_words(backend).facts)


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_the_sparse_way_and_the_dense_way_agree(family):
    """On CPU only intricate places are looked at twice; compiled and on GPUs all are."""
    for size in (300, 1500):
        tokenizer = tokenizer_of(family, size)
        words = derive_words(tokenizer)
        for vocabulary in (tokenizer.get_vocab_size(), 60):  # any order of ids at all, with many or few parts
            ids = torch.randint(0, vocabulary, (40, 64)) if vocabulary > 60 else torch.randint(5, 60, (40, 64))
            cu_seqlens = torch.randint(0, ids.numel(), (50,)).sort().values
            cu_seqlens[0], cu_seqlens[-1] = 0, ids.numel()
            ids[torch.rand(ids.shape) < 0.9] = tokenizer.token_to_id("e")
            facts, nowhere = words.facts[ids], torch.zeros(40, 64, dtype=torch.bool)
            first = nowhere.clone()
            first[:, 0] = True
            assert words._starts_sparsely(facts, first).equal(words._starts(facts, first))
            flat_first = nowhere.flatten().index_fill(0, cu_seqlens[:-1], True)
            flat = words._starts(facts.flatten(), flat_first)
            assert words.starts_word(ids.flatten(), cu_seqlens=cu_seqlens).equal(flat)


def test_compiles_whole():
    tokenizer = tokenizer_of("byte-level", size=300)
    words, ids = derive_words(tokenizer), torch.tensor(tokenizer.encode(LINES[25]).ids)[None]
    compiled = torch.compile(words.starts_word, fullgraph=True, backend="eager")
    assert compiled(ids).equal(words.starts_word(ids))


def test_bytes_are_divided_at_characters():
    for text in ("aé€𠮷z", "€", "𠮷", "é𠮷"):
        data = text.encode()
        for start in range(len(data)):
            for end in range(start + 1, len(data) + 1):
                token = _split_bytes(data[start:end])
                body = data[start + token.head_bytes : end]
                assert body.startswith(token.text.encode())
                assert token.is_open == (token.head_bytes == 0 and not token.text)
                assert token.is_part == (not token.text and (token.is_open or token.head_bytes == end - start))
    assert sorted(_byte_chars()) == list(range(256)) and len(set(_byte_chars().values())) == 256


def test_tokenizers_without_a_trace_are_refused():
    def refused(tokenizer, message):
        with pytest.raises(ValueError, match=f"no trace of word boundaries .*{message}.*select tokens or spans"):
            derive_words(tokenizer)

    vocab = {"a": 0, "b": 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    refused(tokenizer, "no pre-tokenizer")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    refused(tokenizer, "drops blanks")
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    refused(tokenizer, "cuts nothing")
    refused(SimpleNamespace(), "SimpleNamespace has no backend of the tokenizers library")  # such as CANINE's
    with pytest.raises(ValueError, match="num_tokens 3 is less than the tokenizer's 1500"):
        derive_words(tokenizer_of("wordpiece"), num_tokens=3)
