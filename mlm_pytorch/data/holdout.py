"""Which documents of a corpus are held out: decided in one pass, in bounded memory, by a hash of the text."""

from collections import Counter
from typing import Any

import numpy as np

from mlm_pytorch.data.encode import ARRAYS, EncodedBatch
from mlm_pytorch.data.journal import State
from mlm_pytorch.data.store import SplitWriter

# A held-out set is measured again and again: more than this makes it slower, not better.
MAX_VALID_DOCUMENTS = 2000
MAX_VALID_TOKENS = 1 << 22
MAX_COPIES = 20  # of one text among them
SPARES = 16  # texts to choose from where few or none are within the share
LARGE_SHARE = 0.1  # of the text: more is held out only where it was asked for, or nothing less is there


class HoldOut:
    """Sends each document to one of two writers: `add` batches of a corpus, then `finish`.

    Held out are the texts whose hashes lie within a bound: `share` of all hashes, halved whenever that is more than a
    held-out set needs. Of a small corpus, or one of a few long documents, that may be none or nearly all, so that the
    lowest hashes beyond it are held as spares until the end: then the lowest that is no large share of the text is held
    out. A text with more than `MAX_COPIES` copies never is, nor a document of more than `MAX_VALID_TOKENS`.

    What is held lies up to a limit, and what that uncovers goes to `train`. Since it only sinks, it is one number in
    the end: equal texts lie on one side.

    What is written depends on the documents and their order alone, not on how they come in batches.
    """

    def __init__(self, share: float, train: SplitWriter, valid: SplitWriter):
        self.share, self.train, self.valid = share, train, valid
        self.bound = int(share * 2**64)
        self.limit = 2**64 - 1
        self.total = 0  # tokens of all documents
        self.banned: set[int] = set()
        self.held: list[EncodedBatch] = []  # of one document each
        self._recount()

    def _recount(self) -> None:
        self.copies = Counter(int(document.hashes[0]) for document in self.held)
        self.tokens = sum(len(document.ids) for document in self.held)

    def _fits(self, document: EncodedBatch) -> bool:
        hash = int(document.hashes[0])
        return hash <= self.limit and hash not in self.banned and len(document.ids) <= MAX_VALID_TOKENS

    def add(self, batch: EncodedBatch) -> None:
        """Hold or write each document of the next batch."""
        self.total += len(batch.ids)
        start = 0  # of what is not yet written
        stays = np.ones(len(batch), dtype=bool)  # in `train`
        # The limit only sinks, so all others go to `train`, which is nearly all.
        for index in np.flatnonzero(batch.hashes <= np.uint64(self.limit)).tolist():
            document = batch.slice(index, index + 1)
            if self._fits(document):
                stays[index] = False
                if released := self._hold(document):
                    batch.slice(start, index).where(stays[start:index]).write(self.train)
                    start = index + 1
                    for one in released:
                        one.write(self.train)
        batch.slice(start, len(batch)).where(stays[start:]).write(self.train)

    def _hold(self, document: EncodedBatch) -> list[EncodedBatch]:
        """Hold one more, and return what that pushes out."""
        hash = int(document.hashes[0])
        self.held.append(document.copy())
        self.copies[hash] += 1
        self.tokens += len(document.ids)
        released = []
        if self.copies[hash] > MAX_COPIES:
            self.banned.add(hash)
            released += self._release()
        while (too_much := self._too_much()) or (len(self.copies) > SPARES and self.limit >= self.bound):
            texts = sorted(self.copies)
            if too_much and texts[-1] < self.bound:  # there are no spares to let go of
                self.bound //= 2
            highest = texts[SPARES - 1] if len(texts) > SPARES else texts[-1] - 1
            self.limit = max(self.bound - 1, highest)
            released += self._release()
        return released

    def _too_much(self) -> bool:
        return len(self.held) > MAX_VALID_DOCUMENTS or self.tokens > MAX_VALID_TOKENS

    def _release(self) -> list[EncodedBatch]:
        """Let go of what no longer fits."""
        released = [document for document in self.held if not self._fits(document)]
        self.held = [document for document in self.held if self._fits(document)]
        self._recount()
        return released

    def state(self) -> State:
        """What `restore` needs to go on from here."""
        facts = {"bound": self.bound, "limit": self.limit, "total": self.total, "banned": sorted(self.banned)}
        if not self.held:
            return State({**facts, "sources": []})
        held = EncodedBatch.join(self.held)
        return State({**facts, "sources": held.sources}, {name: getattr(held, name) for name in ARRAYS})

    def restore(self, state: State) -> None:
        """Go on where `state` was asked for."""
        facts = state.facts
        self.bound, self.limit, self.total = facts["bound"], facts["limit"], facts["total"]
        self.banned = set(facts["banned"])
        if state.arrays:
            fields: dict[str, Any] = {**state.arrays, "sources": facts["sources"]}
            held = EncodedBatch(**fields, num_read=0, words=0, word_tokens=0)
            self.held = [held.slice(index, index + 1).copy() for index in range(len(held))]
        self._recount()

    def finish(self) -> str:
        """Write what is held: at least one document stays in `train`, and one is held out where that can be.

        Returns what a user should know of it, in one line; "" where there is nothing to say.
        """
        chosen = self._chosen()
        held_out = 0
        for document in self.held:
            is_chosen = int(document.hashes[0]) in chosen
            held_out += len(document.ids) * is_chosen
            document.write(self.valid if is_chosen else self.train)
        if self.total and not chosen:
            return (
                "nothing is held out: the corpus is a single document, repeats a few, or has very long ones only; "
                "name held-out files with --valid, or cut it into more documents with --split-text"
            )
        if held_out > self._most():
            return (
                f"{held_out:,} of {self.total:,} tokens are held out ({held_out / self.total:.0%}), since the corpus "
                "has few documents; name held-out files with --valid, or none to train on everything"
            )
        return ""

    def _most(self) -> float:
        """Tokens that may be held out. Twice the share: by chance more than that of the hashes are within it."""
        return max(2 * self.share, LARGE_SHARE) * self.total

    def _chosen(self) -> set[int]:
        """The hashes of what is held out: those within the bound, or one spare, up to a large share of the text."""
        sizes = Counter[int]()
        for document in self.held:
            sizes[int(document.hashes[0])] += len(document.ids)
        most = min(self._most(), self.total - 1)
        chosen, tokens = set[int](), 0
        for hash in sorted(sizes):
            if (hash < self.bound or not chosen) and tokens + sizes[hash] <= most:
                chosen.add(hash)
                tokens += sizes[hash]
        smallest = min(sizes, key=lambda hash: (sizes[hash], hash), default=None)
        if not chosen and smallest is not None and sizes[smallest] < self.total:
            chosen.add(smallest)
        return chosen
