"""The words of a text as a tokenizer cuts them, counted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from mlm_pytorch.data.tokenizer import Tokenizer, count_words
from mlm_pytorch.data.tokenizer.content import kind_of_content
from mlm_pytorch.data.tokenizer.sample import sample_texts

SAMPLE_CHARACTERS = 1 << 23  # of a corpus; more changes little of what is frequent in it
_BATCH = 256
_OF_SEQUENCES = ("kmer", "amino-acids")
_JUDGED = 2000  # texts by which sequences are told from words


@dataclass(frozen=True)
class WordCounts:
    """How often each word occurs, as the ids of its pieces.

    Attributes:
        words: the pieces of a word, where the tokenizer's own pre-tokenizer cuts words, and its count.
        num_words: between white space.
        num_pieces: without framing.
        num_unknown: pieces that stand for what the vocabulary lacks.
        sequences: whether the texts, or those that the tokenizer was made for, are DNA or proteins: without words.
    """

    words: Counter[tuple[int, ...]]
    num_words: int
    num_pieces: int
    num_unknown: int
    sequences: bool = False

    @property
    def pieces_per_word(self) -> float:
        """Into how many pieces a word between white space is cut."""
        return self.num_pieces / max(1, self.num_words)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str], characters: int = SAMPLE_CHARACTERS) -> WordCounts:
    """Count the words of at most `characters` characters, drawn evenly from all over some texts (see `sample_texts`).

    Memory grows with the number of different words and the size of the sample, not with the texts.
    """
    words: Counter[tuple[int, ...]] = Counter()
    num_words = num_pieces = num_unknown = 0
    sample = sample_texts(texts, characters).texts  # of bounded length: an encoding takes a hundred times their memory
    for start in range(0, len(sample), _BATCH):
        batch = sample[start : start + _BATCH]
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
    kinds = {(tokenizer.kind or "").partition(":")[0], kind_of_content(sample[:_JUDGED])}
    sequences = not kinds.isdisjoint(_OF_SEQUENCES)
    return WordCounts(words, num_words, num_pieces, num_unknown, sequences)
