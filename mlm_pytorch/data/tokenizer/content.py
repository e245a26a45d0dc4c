"""What kind of tokenizer texts call for, judged by their letters: DNA, proteins, or anything else."""

import statistics
from collections import Counter
from collections.abc import Sequence

from mlm_pytorch.data.tokenizer.alphabets import AMINO_ACID_CODES, AMINO_ACIDS, TokenizerKind

JUDGED_SHARE = 0.999  # of the characters that have to be letters of an alphabet: a stray line does not decide
SHORTEST_SEQUENCE = 20  # median length in letters; shorter ones may be words, names or codes
RARE_AMINO_ACIDS = 0.02  # B J O U Z: one in a thousand in proteins, one in nine letters of English
UNKNOWN_AMINO_ACIDS = 0.1  # X
DIFFERENT_AMINO_ACIDS = 15  # of the 20 that a corpus of proteins shows at least


def kind_of_content(texts: Sequence[str]) -> TokenizerKind:
    """The kind of tokenizer that suits the texts of a sample: "kmer", "amino-acids", else "bpe".

    DNA (or RNA) is made of A, C, G, T or U and N in either case, each of the four at least one letter in a hundred.
    Proteins are made of upper-case amino acids, of the usual ones nearly always. Either comes in texts without white
    space, half of them of 20 letters or more. In doubt it is "bpe", which can encode anything.

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
    if (
        share(AMINO_ACIDS + AMINO_ACID_CODES) >= JUDGED_SHARE
        and share("BJOUZ") <= RARE_AMINO_ACIDS
        and share("X") <= UNKNOWN_AMINO_ACIDS
        and share("-.") <= UNKNOWN_AMINO_ACIDS
        and sum(counts[letter] > 0 for letter in AMINO_ACIDS) >= DIFFERENT_AMINO_ACIDS
    ):
        return "amino-acids"
    return "bpe"
