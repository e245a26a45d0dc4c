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


class HoldOut:
    """Sends each document to one of two writers: `add` batches of a corpus, then `finish`.

    Held out are the hashes up to a limit, which stands at `share` of all hashes (or at the lowest hash seen, so that
    there is one document at least) and is halved whenever more is held than a held-out set needs. What it uncovers goes
    to `train`. Since it only sinks, it is one number in the end: equal texts lie on one side. A text with more than
    `MAX_COPIES` copies is not held out, as long as there are others.

    What is written depends on the documents and their order alone, not on how they come in batches.
    """

    def __init__(self, share: float, train: SplitWriter, valid: SplitWriter):
        self.train, self.valid = train, valid
        self.bound = int(share * 2**64)
        self.limit = self.lowest = 2**64 - 1
        self.banned: set[int] = set()
        self.held: list[EncodedBatch] = []  # of one document each
        self._recount()

    def _recount(self) -> None:
        self.copies = Counter(int(document.hashes[0]) for document in self.held)
        self.tokens = sum(len(document.ids) for document in self.held)
        self.only_spare = bool(self.held) and not self._fits(self.held[0])

    def _fits(self, document: EncodedBatch) -> bool:
        hash = int(document.hashes[0])
        return hash <= self.limit and hash not in self.banned

    def add(self, batch: EncodedBatch) -> None:
        """Hold or write each document of the next batch."""
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
        limit_before = self.limit
        self.lowest = min(self.lowest, hash)
        self.limit = min(self.limit, max(self.bound - 1, self.lowest))
        if self.copies[hash] > MAX_COPIES:
            self.banned.add(hash)
        released = []
        if self.limit < limit_before or hash in self.banned or self.only_spare:
            released += self._release()
        while len(self.copies) > 1 and (len(self.held) > MAX_VALID_DOCUMENTS or self.tokens > MAX_VALID_TOKENS):
            self.bound //= 2
            self.limit = min(self.limit, max(self.bound - 1, self.lowest))
            released += self._release()
        return released

    def _release(self) -> list[EncodedBatch]:
        """Let go of what no longer fits; one document stays as a spare where none does."""
        kept = [document for document in self.held if self._fits(document)] or self.held[:1]
        staying = set(map(id, kept))
        released = [document for document in self.held if id(document) not in staying]
        self.held = kept
        self._recount()
        return released

    def state(self) -> State:
        """What `restore` needs to go on from here."""
        facts = {"bound": self.bound, "limit": self.limit, "lowest": self.lowest, "banned": sorted(self.banned)}
        if not self.held:
            return State({**facts, "sources": []})
        held = EncodedBatch.join(self.held)
        arrays = {name: getattr(held, name) for name in ARRAYS}
        return State({**facts, "sources": held.sources}, arrays)

    def restore(self, state: State) -> None:
        """Go on where `state` was asked for."""
        facts = state.facts
        self.bound, self.limit, self.lowest = facts["bound"], facts["limit"], facts["lowest"]
        self.banned = set(facts["banned"])
        if state.arrays:
            fields: dict[str, Any] = {**state.arrays, "sources": facts["sources"]}
            held = EncodedBatch(**fields, num_read=0, words=0, word_tokens=0)
            self.held = [held.slice(index, index + 1).copy() for index in range(len(held))]
        self._recount()

    def finish(self) -> None:
        """Write what is held. At least one document stays in `train`, and one is held out where there are two."""
        kept = [document for document in self.held if int(document.hashes[0]) not in self.banned]
        if not kept or not self.train.documents:
            kept = self.held[:1] if len(self.held) > 1 or self.train.documents else []
        staying = set(map(id, kept))
        for document in self.held:
            document.write(self.valid if id(document) in staying else self.train)
