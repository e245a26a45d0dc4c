"""How badly a tokenizer fits a corpus: pieces per word, against a general text or against what is usual."""

from dataclasses import dataclass

from mlm_pytorch.adaptation.words import WordCounts
from mlm_pytorch.data.tokenizer import Tokenizer

# Pieces per word between white space of a tokenizer on text like what it was trained on: punctuation counts as pieces,
# which makes 1.15 at least of English. BERT's, RoBERTa's and ModernBERT's lie at 1.2 to 1.4 on English news and books.
USUAL = (1.2, 1.5)
BADLY = 1.25  # times as many pieces as on general text: the vocabulary is worth extending
NO_WORDS = 100  # pieces between white space: those are no words but sequences, or writing without blanks
_SHOWN = 5


@dataclass(frozen=True)
class FitReport:
    """What a tokenizer makes of a corpus.

    Attributes:
        pieces_per_word: on the corpus.
        general: on a general text; None where there was none to compare with.
        cut_share: share of the corpus' words, as they come, that are cut into several pieces.
        unknown_share: share of its pieces that stand for what the vocabulary lacks.
        costliest: the words that take most pieces more than one: (word, pieces, how often it occurs).
        has_words: whether there are words by which a fit could be told; DNA and proteins have none.
    """

    pieces_per_word: float
    general: float | None
    cut_share: float
    unknown_share: float
    costliest: tuple[tuple[str, int, int], ...]
    has_words: bool = True

    @property
    def fits_badly(self) -> bool:
        """Whether the corpus takes so many pieces that a larger vocabulary would help."""
        expected = USUAL[1] if self.general is None else BADLY * self.general
        return self.has_words and self.pieces_per_word > expected

    def describe(self) -> str:
        """In one line, without any text of the corpus.

        >>> FitReport(1.9, 1.3, 0.3, 0.0, ()).describe().partition(';')[0]
        'the tokenizer makes 1.90 pieces a word of this corpus and 1.30 of the general text (46% more)'
        """
        unknown = f", {self.unknown_share:.2%} of pieces are unknown to it" if self.unknown_share else ""
        if not self.has_words:
            return f"the corpus has no words between blanks, by which the tokenizer's fit could be told{unknown}"
        if self.general is None:
            against = f" ({USUAL[0]} to {USUAL[1]} is usual for a tokenizer on its own kind of text)"
        else:
            more = round(self.pieces_per_word / self.general - 1, 2)
            compared = f"{abs(more):.0%} {'more' if more > 0 else 'fewer'}" if more else "as many"
            against = f" and {self.general:.2f} of the general text ({compared})"
        verdict = "it fits badly, --extend-vocabulary may help" if self.fits_badly else "it fits"
        return (
            f"the tokenizer makes {self.pieces_per_word:.2f} pieces a word of this corpus{against}; "
            f"{self.cut_share:.0%} of words are cut{unknown}: {verdict}"
        )


def tokenizer_fit(tokenizer: Tokenizer, domain: WordCounts, general: WordCounts | None = None) -> FitReport:
    """How a tokenizer fits a domain, by what `count_pieces` counted of it and of a general text.

    The costliest words are text of the corpus: whoever shows them must take care of control characters.
    """
    cost = {word: (len(word) - 1) * count for word, count in domain.words.items() if len(word) > 1}
    top = sorted(cost, key=lambda word: (-cost[word], word))[:_SHOWN]
    costliest = tuple((tokenizer.backend.decode(list(word)).strip(), len(word), domain.words[word]) for word in top)
    cut = sum(count for word, count in domain.words.items() if len(word) > 1)
    return FitReport(
        domain.pieces_per_word,
        None if general is None else general.pieces_per_word,
        cut / max(1, domain.words.total()),
        domain.num_unknown / max(1, domain.num_pieces),
        costliest,
        has_words=not domain.sequences and domain.pieces_per_word < NO_WORDS,
    )
