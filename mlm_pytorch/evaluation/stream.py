"""Documents to packs, without a store: each piece is forgotten when its pack is done, so that memory does not grow.

Pieces are cut and numbered as `prepare` cuts and numbers them by default, and masks are a function of a piece's number:
measuring a file and measuring the split of a store that holds all of its documents give the same figures. A store that
holds some of them out has two splits, each with numbers of its own. One whose long documents were truncated or cut into
windows has other pieces of the same text, whose tokens and bytes are those counted here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mlm_pytorch.data.corpus import Document
from mlm_pytorch.data.packing import Pack, build_pack
from mlm_pytorch.data.pieces import cut
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.tokens import SpecialTokens

BATCH_CHARACTERS = 1 << 15  # tokenized at a time, in about a hundred times their memory


@dataclass
class PieceStream:
    """The packs of some documents, once, and what went by while they were read.

    Attributes:
        documents: to read.
        tokenizer: turns their text into ids; documents that are ids already are taken as they are.
        seq_len: longest piece in tokens, framing included.
        capacity: tokens of a pack, at least `seq_len`.
        num_bytes: of the text so far, in UTF-8, of documents that have tokens; None once one came as ids.
        num_tokens: so far, without framing.
        num_documents: so far, of those that have tokens.
        sources: of the pieces in the pack that is being used, by their numbers.
    """

    documents: Iterable[Document]
    tokenizer: Tokenizer
    seq_len: int
    capacity: int
    num_bytes: int | None = 0
    num_tokens: int = 0
    num_documents: int = 0
    sources: dict[int, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        special = self.tokenizer.special
        framing = len(special.prefix) + len(special.suffix)
        if self.seq_len <= framing:
            raise ValueError(
                f"seq_len {self.seq_len} leaves no room beside the {framing} tokens that frame a piece; "
                "choose a larger one"
            )
        self._max_piece = self.seq_len - framing

    def __iter__(self) -> Iterator[Pack]:
        special = self.tokenizer.special
        framing = len(special.prefix) + len(special.suffix)
        held: dict[int, np.ndarray] = {}
        room = self.capacity
        for number, (piece, source) in enumerate(self._pieces()):
            if len(piece) + framing > room:
                yield self._pack(held, self.capacity)
                held, room = {}, self.capacity
                self.sources = {}
            held[number] = piece
            self.sources[number] = source
            room -= len(piece) + framing
        if held:
            yield self._pack(held, self.capacity - room)

    def source(self, piece: int) -> str | None:
        """Where a piece of the current pack came from."""
        return self.sources[piece]

    def _pack(self, held: dict[int, np.ndarray], capacity: int) -> Pack:
        numbers = np.array(list(held))
        return build_pack(_Window(self.tokenizer.special, held), numbers, np.zeros(len(held), np.int64), capacity)

    def _pieces(self) -> Iterator[tuple[np.ndarray, str | None]]:
        for batch in self._batches():
            encoded = iter(self._encoded([document.text for document in batch if document.ids is None]))
            for document in batch:
                if document.ids is not None:
                    self.num_bytes = None
                    ids = self.tokenizer.special.content(np.asarray(document.ids, dtype=np.int64))
                else:
                    ids = next(encoded).astype(np.int64)
                if not len(ids):
                    continue
                self._check(ids, document)
                self.num_tokens += len(ids)
                self.num_documents += 1
                if document.ids is None and self.num_bytes is not None:
                    self.num_bytes += len(document.text.encode())
                lengths = cut(np.array([len(ids)]), self._max_piece).lengths
                for piece in np.split(ids, lengths.cumsum()[:-1]):
                    yield piece, document.source

    def _encoded(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, as a preparation makes them: a long text, such as a chromosome, part by part."""
        if not texts:
            return []
        ids, lengths = self.tokenizer.encode_arrays(texts)
        return np.split(ids, lengths.cumsum()[:-1])

    def _check(self, ids: np.ndarray, document: Document) -> None:
        if document.ids is not None and int(ids.max()) >= self.tokenizer.special.num_tokens:
            raise ValueError(
                f"a sequence of {document.source} holds token id {int(ids.max())}, outside the vocabulary of "
                f"{self.tokenizer.special.num_tokens}; use the tokenizer that made the ids"
            )

    def _batches(self) -> Iterator[list[Document]]:
        batch: list[Document] = []
        size = 0  # in characters, and in ids of documents that are ids
        for document in self.documents:
            batch.append(document)
            size += 1 + (len(document.text) if document.ids is None else len(document.ids))
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        yield batch


@dataclass
class _Window:
    """The pieces of one pack, as `build_pack` asks for them."""

    special: SpecialTokens
    held: dict[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.held)

    @property
    def num_tokens(self) -> int:
        """Of all pieces, without framing."""
        return sum(map(len, self.held.values()))

    def piece(self, index: int) -> np.ndarray:
        """Ids of a piece."""
        return self.held[index]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces."""
        return np.array([len(self.held[index]) for index in indices.tolist()], dtype=np.int64)
