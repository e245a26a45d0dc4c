"""What kind of tokenizer texts call for, judged by their letters: DNA, proteins, or anything else."""

import statistics
from collections import Counter
from collections.abc import Sequence

from mlm_pytorch.data.tokenizer.alphabets import (
    AMINO_ACID_CODES,
    AMINO_ACIDS,
    NUCLEOTIDE_CODES,
    NUCLEOTIDES,
    TokenizerKind,
)

JUDGED_SHARE = 0.999  # of the characters that have to be letters of an alphabet: a stray line does not decide
SHORTEST_SEQUENCE = 20  # median length in letters; shorter ones may be words, names or codes
RARE_AMINO_ACIDS = 0.02  # B J O U Z: one in a thousand in proteins, one in nine letters of English
UNKNOWN_AMINO_ACIDS = 0.1  # X
LOWER_CASE_AMINO_ACIDS = 0.5  # soft-masked stretches, and insertions of an A3M file
DIFFERENT_AMINO_ACIDS = 15  # of the 20 that a corpus of proteins shows at least


def kind_of_content(texts: Sequence[str]) -> TokenizerKind:
    """The kind of tokenizer that suits the texts of a sample: "kmer", "amino-acids", else "bpe".

    DNA (or RNA) is made of A, C, G, T or U and N in either case, each of the four at least one letter in a hundred.
    Proteins are made of amino acids, of the usual ones nearly always, and of no more lower case than upper case. Either
    comes in texts without white space, half of them of 20 letters or more. In doubt it is "bpe", which can encode
    anything.

    >>> [kind_of_content([text]) for text in ("ACGTTGCAAGCTTGCAGGCATNNACG", "CAT", "Some text.")]
    ['kmer', 'bpe', 'bpe']
    """
    texts = [text.strip() for text in texts]
    counts = Counter()
    for text in texts:
        counts.update(text)
    total = sum(counts.values())
    if not total or statistics.median(map(len, texts)) < SHORTEST_SEQUENCE:
        return "bpe"
    if any(char.isspace() for char in counts):
        return "bpe"

    def share(letters: str) -> float:
        return sum(counts[letter] for letter in letters) / total

    nucleotides = [share(letters) for letters in ("Aa", "Cc", "Gg", "TtUu")]
    if sum(nucleotides) + share("Nn") >= JUDGED_SHARE and min(nucleotides) >= 0.01:
        return "kmer"
    lower_case = sum(count for char, count in counts.items() if char.islower()) / total
    for char in [char for char in counts if char.isascii() and char.islower()]:
        counts[char.upper()] += counts.pop(char)
    if (
        lower_case <= LOWER_CASE_AMINO_ACIDS
        and share(AMINO_ACIDS + AMINO_ACID_CODES) >= JUDGED_SHARE
        and share("BJOUZ") <= RARE_AMINO_ACIDS
        and share("X") <= UNKNOWN_AMINO_ACIDS
        and share("-.") <= UNKNOWN_AMINO_ACIDS
        and sum(counts[letter] > 0 for letter in AMINO_ACIDS) >= DIFFERENT_AMINO_ACIDS
    ):
        return "amino-acids"
    return "bpe"


def fits_alphabet(texts: Sequence[str], kind: TokenizerKind) -> bool:
    """Whether texts may be sequences of a kind that someone named, "kmer" or "amino-acids", where letters are in doubt.

    Short ones, lower case and many codes are no objection here, white space and the letters of words are.

    >>> fits_alphabet(["LLGDFFRK", "siinfekl"], "amino-acids"), fits_alphabet(["Some", "words"], "amino-acids")
    (True, False)
    """
    counts = Counter("".join(text.strip() for text in texts).upper())
    total = max(1, sum(counts.values()))

    def share(letters: str) -> float:
        return sum(counts[letter] for letter in letters) / total

    if kind == "kmer":
        return share(NUCLEOTIDES + "U" + NUCLEOTIDE_CODES) >= JUDGED_SHARE and share(NUCLEOTIDES + "U") >= 0.5
    return share(AMINO_ACIDS + AMINO_ACID_CODES) >= JUDGED_SHARE and share("BJOUZ") <= RARE_AMINO_ACIDS
