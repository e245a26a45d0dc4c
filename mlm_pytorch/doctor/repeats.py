"""Documents that repeat, and held-out ones that come up in training: counted by hashes, in bounded memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlm_pytorch.data.corpus import Corpus, Document
from mlm_pytorch.data.formats.text import SplitText

REPEATED_CHARACTERS = 40  # shorter texts ("Yes.", "Chapter 1") repeat in any corpus
REPEATED_IDS = 16
HASHES = 1 << 17  # hashes held while repeats are counted


@dataclass
class Repeats:
    """Counts repeated documents in bounded memory: of all hashes only an evenly drawn, shrinking share is held.

    All copies of a document have one hash, so of a document that is counted, all copies are.
    """

    held_out: frozenset[int] = frozenset()
    modulus: int = 1
    counts: Counter[int] = field(default_factory=Counter)
    documents: int = 0  # that were looked at, short ones too
    found: set[int] = field(default_factory=set)  # of `held_out`

    def add(self, document: Document) -> None:
        """Look at one document."""
        self.documents += 1
        key = document_hash(document)
        if key is None:
            return
        if key in self.held_out:
            self.found.add(key)
        if key % self.modulus == 0:
            self.counts[key] += 1
            if len(self.counts) > HASHES:
                self.modulus *= 2
                self.counts = Counter({k: count for k, count in self.counts.items() if k % self.modulus == 0})

    @property
    def duplicates(self) -> int:
        """How many documents repeat an earlier one; an estimate once `modulus` is above 1."""
        return self.modulus * sum(count - 1 for count in self.counts.values())


def document_hash(document: Document) -> int | None:
    """The same for equal documents; None for those so short that they say nothing when they repeat."""
    if document.ids is not None:
        return hash(document.ids.tobytes()) if len(document.ids) >= REPEATED_IDS else None
    text = document.text.strip()
    return hash(text) if len(text) >= REPEATED_CHARACTERS else None


def held_out_hashes(paths: Sequence[str | Path], column: str | None, split_text: SplitText | None) -> set[int]:
    """`document_hash` of the documents of held-out files, at most `HASHES` of them."""
    found: set[int] = set()
    for document in Corpus(paths, column=column, split_text=split_text, encoding_errors="replace"):
        if (key := document_hash(document)) is not None:
            found.add(key)
        if len(found) >= HASHES:
            break
    return found
