"""The words of a text as a tokenizer cuts them, counted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, islice

from mlm_pytorch.data.tokenizer import Tokenizer, count_words

SAMPLE_CHARACTERS = 1 << 23  # of a corpus; more changes little of what is frequent in it
_BATCH = 256
_LONGEST_TEXT = 1 << 16  # characters of one text that are looked at: an encoding takes a hundred times their memory


@dataclass(frozen=True)
class WordCounts:
    """How often each word occurs, as the ids of its pieces.

    Attributes:
        words: the pieces of a word, where the tokenizer's own pre-tokenizer cuts words, and its count.
        num_words: between white space.
        num_pieces: without framing.
        num_unknown: pieces that stand for what the vocabulary lacks.
    """

    words: Counter[tuple[int, ...]]
    num_words: int
    num_pieces: int
    num_unknown: int

    @property
    def pieces_per_word(self) -> float:
        """Into how many pieces a word between white space is cut."""
        return self.num_pieces / max(1, self.num_words)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str], characters: int = SAMPLE_CHARACTERS) -> WordCounts:
    """Count the words of the first `characters` characters of some texts.

    Memory grows with the number of different words, not with the texts.
    """
    words: Counter[tuple[int, ...]] = Counter()
    num_words = num_pieces = num_unknown = seen = 0
    texts = iter(texts)
    while seen < characters and (batch := [text[:_LONGEST_TEXT] for text in islice(texts, _BATCH)]):
        seen += sum(map(len, batch))
        num_words += count_words(batch)
        for encoding in tokenizer.encodings(batch):
            ids = encoding.ids
            num_pieces += len(ids)
            if tokenizer.unknown_id is not None:
                num_unknown += ids.count(tokenizer.unknown_id)
            pairs = zip(encoding.word_ids, ids, strict=True)
            words.update(
                tuple(piece for _, piece in pieces)
                for word, pieces in groupby(pairs, lambda pair: pair[0])
                if word is not None
            )
    return WordCounts(words, num_words, num_pieces, num_unknown)
