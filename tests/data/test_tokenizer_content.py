"""Which kind of tokenizer texts call for: sequences are found, and nothing else is taken for them."""

import base64
import hashlib
import keyword

import numpy as np
import pytest

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.data.tokenizer.content import kind_of_content

# Shares of amino acids in proteins, in percent, rounded.
SHARES = {
    "L": 9.7,
    "A": 8.3,
    "G": 7.1,
    "V": 6.9,
    "E": 6.7,
    "S": 6.6,
    "I": 5.9,
    "K": 5.8,
    "R": 5.5,
    "D": 5.5,
    "T": 5.4,
    "P": 4.7,
    "N": 4.1,
    "Q": 3.9,
    "F": 3.9,
    "Y": 2.9,
    "M": 2.4,
    "H": 2.3,
    "C": 1.4,
    "W": 1.1,
}
ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
)
GENES = [
    "BRCA",
    "EGFR",
    "KRAS",
    "MYC",
    "PTEN",
    "APC",
    "ATM",
    "CDH",
    "CHEK",
    "MLH",
    "MSH",
    "PALB",
    "RAD",
    "STK",
    "TP",
    "VHL",
    "WT",
    "ALK",
    "RET",
    "KIT",
    "MET",
    "ERBB",
    "CCND",
]


def random_texts(letters, number=200, low=30, high=400, shares=None):
    generator = np.random.default_rng(0)
    shares = None if shares is None else np.array(shares) / sum(shares)
    sizes = generator.integers(low, high, number)
    return ["".join(generator.choice(list(letters), size=size, p=shares)) for size in sizes]


PROTEINS = random_texts(SHARES, shares=list(SHARES.values()))
DNA = random_texts("ACGT")


@pytest.mark.parametrize(
    "texts",
    [
        DNA,
        [text.lower() for text in DNA],
        [text.replace("T", "U") for text in DNA],
        [text + "\n" for text in DNA],
        [*DNA, "ACGTRYNN"],  # a few of the other codes
        [f"{text}NNNNNNNNNN{text}" for text in DNA],
        ["".join(DNA)],
        random_texts("ACGT", low=20, high=25),  # primers
    ],
)
def test_nucleotides(texts):
    assert kind_of_content(texts) == "kmer"


@pytest.mark.parametrize(
    "texts",
    [
        PROTEINS,
        [text + "*" for text in PROTEINS],
        [*PROTEINS, "MKTXXXXUB"],
        PROTEINS[:3],
        [text[:9] + text[9:20].lower() + text[20:] for text in PROTEINS],  # soft-masked
        [text[: len(text) // 2 + 1] + text[len(text) // 2 + 1 :].lower() for text in PROTEINS],
    ],
)
def test_proteins(texts):
    assert kind_of_content(texts) == "amino-acids"


HASHES = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(200)]


@pytest.mark.parametrize(
    "texts",
    [
        [ENGLISH],
        [ENGLISH.upper()],
        [ENGLISH.upper().replace(" ", "").replace(",", "").replace(".", "")] * 9,  # headlines run together
        ENGLISH.split() * 9,
        ENGLISH.upper().split() * 9,
        HASHES,
        [text.upper() for text in HASHES],
        [text.upper().translate({ord(d): "ABCDEFGHIJ"[int(d)] for d in "0123456789"}) for text in HASHES],
        [base64.b64encode(text.encode()).decode() for text in HASHES],
        [base64.b32encode(text.encode()).decode() for text in HASHES],
        random_texts("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        GENES * 9,
        [" ".join(GENES)] * 9,
        keyword.kwlist * 9,
        [ENGLISH.title().replace(" ", "").replace(",", "").replace(".", "")] * 9,  # names in CamelCase
        ["act", "cat", "gnat", "tact", "aunt"] * 99,
        ["CAT", "TAG", "ACT", "GAGA"] * 99,
        ["N" * 100, "NNNNNNNNNNNNNNNNNNNNNN"],
        ["A" * 100] * 9,
        ["NANANANANANANANANANANANABATMAN"] * 9,
        ["gagagagagagagagagagagagagaga"] * 9,
        [f">read{i}\n{text}" for i, text in enumerate(DNA)],  # a FASTA file read as text
        [" ".join(text) for text in DNA],
        [" ".join(text) for text in PROTEINS],
        [text.lower() for text in PROTEINS],
        [text[:9] for text in PROTEINS],  # peptides: as short as names
        ["1100101010001011101010001010101010"] * 9,
        ["你好世界" * 20],
        ["", "  "],
        [],
    ],
)
def test_everything_else(texts):
    assert kind_of_content(texts) == "bpe"


def test_training_takes_the_kind_that_the_texts_call_for():
    assert [train_tokenizer(texts).kind for texts in (DNA, PROTEINS, [ENGLISH] * 9)] == ["kmer:6", "amino-acids", "bpe"]
    assert train_tokenizer(DNA, kind="characters").kind == "characters"
    tokenizer = train_tokenizer(DNA, 300)  # a size can only be meant for what is learned
    assert (tokenizer.kind, tokenizer.special.num_tokens) == ("bpe", 300)
