"""Encoded documents -> the shards of both splits, with all that must be known to go on after an interruption."""

from dataclasses import asdict
from pathlib import Path

from mlm_pytorch.data.duplicates import HashLog, count_seen_before, repeated_documents
from mlm_pytorch.data.encode import EncodedBatch, Position
from mlm_pytorch.data.holdout import HoldOut
from mlm_pytorch.data.journal import State
from mlm_pytorch.data.partial import DUPLICATES
from mlm_pytorch.data.pieces import Cutting
from mlm_pytorch.data.store import SplitWriter, check_ids
from mlm_pytorch.data.tokenizer import TokenCounter, Tokenizer

SPLITS = ("train", "valid")
LOG = "texts.bin"


class Writing:
    """What a preparation has written, and how far it has read the corpus of each split.

    - `hold_out_share`: of the corpus for "train"; 0 where "valid" has a corpus of its own.
    - `count_duplicates`: log a hash of every document, to be counted at the end.
    - `state`: go on where it was asked for, in a folder with the shards of then.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        cutting: Cutting,
        *,
        hold_out_share: float,
        count_duplicates: bool,
        state: State | None = None,
    ):
        self.scratch = folder / DUPLICATES
        self.train, self.valid = self.writers = tuple(
            SplitWriter(
                folder,
                split,
                tokenizer.special.num_tokens,
                cutting.max_piece(tokenizer.special),
                long_documents=cutting.long_documents,
                overlap=cutting.overlap,
            )
            for split in SPLITS
        )
        self.hold_out = HoldOut(hold_out_share, self.train, self.valid) if hold_out_share > 0 else None
        self.positions = {split: Position() for split in SPLITS}
        self.counter = TokenCounter(tokenizer.special, tokenizer.unknown_id)
        self.documents_without_tokens = self.tokens_read = 0
        if state is not None:
            self._restore(state)
        num_logged = 0 if state is None else state.facts["logged"]
        self.log = HashLog(self.scratch / LOG, 1, num_logged) if count_duplicates else None

    def add(self, split: str, batch: EncodedBatch) -> None:
        """The next documents of a split's corpus."""
        check_ids(batch.ids, self.train.num_tokens, "the corpus")
        self.positions[split] = batch.position
        self.documents_without_tokens += batch.num_read - len(batch)
        words = {"words": batch.words, "word_tokens": batch.word_tokens} if batch.words else {}
        self.counter.add(batch.ids, batch.lengths, int(batch.characters.sum()) or None, **words)
        self.tokens_read += len(batch.ids)
        if self.log is not None:
            self.log.add(batch.hashes)
        if split == "train" and self.hold_out is not None:
            self.hold_out.add(batch)
        else:
            batch.write(self.train if split == "train" else self.valid)

    def finish_holding_out(self) -> str:
        """After the corpus for "train": write what was held. Returns what a user should know of it, or ""."""
        if self.hold_out is None:
            return ""
        said = self.hold_out.finish()
        self.hold_out = None
        return said

    def count_duplicates(self) -> int:
        """Documents whose text came before."""
        return 0 if self.log is None else sum(map(len, repeated_documents(self.log, self.scratch)))

    def count_held_out_trained_on(self) -> int:
        """Documents of "valid" whose text is one of "train" as well, after both corpora. A share of the corpus that is
        held out has none, and of duplicates that are dropped none is left."""
        return 0 if self.log is None else count_seen_before(self.log, self.train.documents)

    @property
    def shards(self) -> dict[str, int]:
        """The files that are complete, with their sizes."""
        return {shard.file: shard.bytes for writer in self.writers for shard in writer.shards}

    @property
    def bytes_out(self) -> int:
        """About the size of a store of what was added."""
        return sum(writer.num_written for writer in self.writers)

    @property
    def bytes_done(self) -> int:
        """Read of both corpora's files."""
        return sum(position.bytes_done for position in self.positions.values())

    @property
    def empty_documents(self) -> int:
        """Nothing but white space, or text without a token."""
        return self.documents_without_tokens + sum(position.empty_documents for position in self.positions.values())

    @property
    def documents_read(self) -> int:
        """Of both corpora, also those without tokens or dropped."""
        return sum(position.documents for position in self.positions.values())

    def state(self) -> State:
        """What is needed to go on from here."""
        state = State(
            {
                "positions": {split: asdict(position) for split, position in self.positions.items()},
                "documents_without_tokens": self.documents_without_tokens,
                "tokens_read": self.tokens_read,
                "logged": None,
            }
        )
        if self.log is not None:
            self.log.sync()
            state.facts["logged"] = self.log.num_documents
        state = state.with_part("counter", State(*self.counter.state()))
        for writer in self.writers:
            state = state.with_part(writer.split, writer.state())
        return state if self.hold_out is None else state.with_part("hold_out", self.hold_out.state())

    def _restore(self, state: State) -> None:
        self.positions = {split: Position(**position) for split, position in state.facts["positions"].items()}
        self.documents_without_tokens = state.facts["documents_without_tokens"]
        self.tokens_read = state.facts["tokens_read"]
        self.counter.restore(state.part("counter").facts, state.part("counter").arrays)
        for writer in self.writers:
            writer.restore(state.part(writer.split))
        if self.hold_out is not None:
            self.hold_out.restore(state.part("hold_out"))  # saved while there is more of its corpus
