"""What a tokenizer makes of a corpus: counted batch by batch, in memory for the vocabulary and no more."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mlm_pytorch.data.tokenizer.record import Tokenizer
from mlm_pytorch.tokens import SpecialTokens

LONGEST_DOCUMENTS = 5
BATCH_TEXTS = 256


@dataclass(frozen=True)
class TokenizerReport:
    """Counts over the documents that were added, framing left out."""

    documents: int
    tokens: int
    characters: int | None  # None for a corpus of ids
    words: int | None  # between white space, in the batches that were counted for it; None where none was
    word_tokens: int  # the tokens of these batches
    unknown_tokens: int
    longest_documents: tuple[int, ...]  # in tokens, longest first
    used_entries: int  # of the vocabulary, special ones left out
    entries: int  # in it, special ones left out

    @property
    def characters_per_token(self) -> float | None:
        """How much text a token stands for; None for a corpus of ids."""
        return self.characters / self.tokens if self.characters is not None and self.tokens else None

    @property
    def tokens_per_word(self) -> float | None:
        """Into how many tokens a word is cut (what is also called fertility); None where no words were counted."""
        return self.word_tokens / self.words if self.words else None

    @property
    def unknown_rate(self) -> float:
        """Share of the tokens that stand for what the vocabulary lacks."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    @property
    def used_share(self) -> float:
        """Share of the vocabulary that occurs at all."""
        return self.used_entries / self.entries if self.entries else 0.0


class TokenCounter:
    """Counts for a `TokenizerReport`, one encoded batch after the other, in O(vocabulary) memory.

    >>> counter = TokenCounter(SpecialTokens(8, mask_token_id=4, pad_token_id=0, ids=(0, 1, 2, 3, 4)), unknown_id=1)
    >>> counter.add(np.array([5, 5, 1, 7]), np.array([3, 1]), characters=12, words=4)
    >>> report = counter.report()
    >>> report.characters_per_token, report.tokens_per_word, report.unknown_rate, report.used_share
    (3.0, 1.0, 0.25, 0.6666666666666666)

    In a loop that encodes batches (`ids, lengths = tokenizer.encode_arrays(texts)`), call

        counter.add(ids, lengths, sum(map(len, texts)), count_words(texts[::8]), int(lengths[::8].sum()))

    once per batch: `words` may be those of some texts, since tokens per word is taken over these alone. For a corpus of
    ids leave out `words` and `characters`.
    """

    def __init__(self, special: SpecialTokens, unknown_id: int | None = None):
        self._special, self._unknown_id = special, unknown_id
        self._seen = np.zeros(special.num_tokens, dtype=bool)
        self._longest = np.zeros(0, dtype=np.int64)
        self._documents = self._tokens = self._unknown = self._word_tokens = 0
        self._characters: int | None = None
        self._words: int | None = None

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What was counted so far, as facts that JSON holds and as arrays."""
        values = vars(self)
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in values.items() if isinstance(value, int | None)}, arrays

    def restore(self, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        vars(self).update(facts, **arrays)

    def add(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        characters: int | None = None,
        words: int | None = None,
        word_tokens: int | None = None,
    ) -> None:
        """Count a batch: all its ids end to end (T,), its documents' lengths (D,), how much text that was.

        `words` are those of the whole batch, or of texts of it that have `word_tokens` tokens.
        """
        self._documents += len(lengths)
        self._tokens += len(ids)
        self._seen[ids] = True
        if self._unknown_id is not None:
            self._unknown += int(np.count_nonzero(ids == self._unknown_id))
        longest = np.concatenate([self._longest, lengths])
        if len(longest) > LONGEST_DOCUMENTS:
            longest = np.partition(longest, -LONGEST_DOCUMENTS)[-LONGEST_DOCUMENTS:]
        self._longest = longest
        if characters is not None:
            self._characters = (self._characters or 0) + characters
        if words is not None:
            self._words = (self._words or 0) + words
            self._word_tokens += len(ids) if word_tokens is None else word_tokens

    def report(self) -> TokenizerReport:
        """What was counted so far."""
        ordinary = np.ones(len(self._seen), dtype=bool)
        ordinary[list(self._special.ids)] = False
        return TokenizerReport(
            documents=self._documents,
            tokens=self._tokens,
            characters=self._characters,
            words=self._words,
            word_tokens=self._word_tokens,
            unknown_tokens=self._unknown,
            longest_documents=tuple(sorted(self._longest.tolist(), reverse=True)),
            used_entries=int(np.count_nonzero(self._seen & ordinary)),
            entries=int(np.count_nonzero(ordinary)),
        )


def count_words(texts: Sequence[str]) -> int:
    """Words between white space. Takes a fiftieth of the time that encoding does."""
    return sum(len(text.split()) for text in texts)


def tokenizer_report(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerReport:
    """Encode all the texts, a batch at a time, and report. Give a sample (`itertools.islice`) of a large corpus."""
    counter = TokenCounter(tokenizer.special, tokenizer.unknown_id)
    texts = iter(texts)
    while batch := list(islice(texts, BATCH_TEXTS)):
        ids, lengths = tokenizer.encode_arrays(batch)
        counter.add(ids, lengths, sum(map(len, batch)), count_words(batch))
    return counter.report()
