"""Documents -> token ids, in batches: what runs in parallel in a preparation.

    read_batches:     corpus -> DocumentBatch...           (one reader: decompress, parse)
    encode_batch:     tokenizer, DocumentBatch -> EncodedBatch   (any number of workers, here threads or elsewhere)
    encode_threaded:  both, in the order of the corpus, whatever finishes first

Each batch says how far the corpus was read when it ends, so that a preparation can go on from there. Where batches end
is of no consequence to what is stored.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from mlm_pytorch.data.corpus import Corpus, Document
from mlm_pytorch.data.store import SplitWriter
from mlm_pytorch.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 19
BATCH_DOCUMENTS = 4096
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Position:
    """How far a corpus has been read."""

    documents: int = 0
    empty_documents: int = 0  # not among the documents: the corpus leaves them out
    bytes_done: int = 0  # of its files, compressed


@dataclass(frozen=True)
class DocumentBatch:
    """Some documents that follow each other in a corpus, and how far it was read when they end."""

    documents: list[Document]
    position: Position


@dataclass(frozen=True)
class EncodedBatch:
    """Documents on the way to a writer, none of them without tokens. Arrays and lists have one entry per document."""

    ids: np.ndarray  # of all documents end to end, uint32
    lengths: np.ndarray  # tokens, int64
    sources: list[str | None]
    characters: np.ndarray  # int64
    bytes: np.ndarray  # of the text in UTF-8, int64
    hashes: np.ndarray  # of the text, uint64
    # Of the batch as it was read, also where this is a part of it:
    num_read: int  # documents, with those that have no tokens
    unknown_tokens: int
    position: Position = Position()

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def slice(self, start: int, stop: int) -> "EncodedBatch":
        """The documents from `start` to before `stop`, without a copy."""
        if (start, stop) == (0, len(self)):
            return self
        return replace(
            self,
            ids=self.ids[self._ends[start] : self._ends[stop]],
            lengths=self.lengths[start:stop],
            sources=self.sources[start:stop],
            characters=self.characters[start:stop],
            bytes=self.bytes[start:stop],
            hashes=self.hashes[start:stop],
        )

    def write(self, writer: SplitWriter) -> None:
        """Add all documents to a split."""
        if len(self):
            writer.add(self.ids, self.lengths, self.sources, int(self.characters.sum()), int(self.bytes.sum()))

    def where(self, chosen: np.ndarray) -> "EncodedBatch":
        """The documents at which `chosen` (bool) is True."""
        if chosen.all():
            return self
        return replace(
            self,
            ids=self.ids[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            sources=[source for source, keep in zip(self.sources, chosen, strict=True) if keep],
            characters=self.characters[chosen],
            bytes=self.bytes[chosen],
            hashes=self.hashes[chosen],
        )

    @staticmethod
    def join(batches: Sequence["EncodedBatch"]) -> "EncodedBatch":
        """The documents of at least one batch, in order."""
        return replace(
            batches[-1],
            ids=np.concatenate([batch.ids for batch in batches]),
            lengths=np.concatenate([batch.lengths for batch in batches]),
            sources=[source for batch in batches for source in batch.sources],
            characters=np.concatenate([batch.characters for batch in batches]),
            bytes=np.concatenate([batch.bytes for batch in batches]),
            hashes=np.concatenate([batch.hashes for batch in batches]),
            num_read=sum(batch.num_read for batch in batches),
            unknown_tokens=sum(batch.unknown_tokens for batch in batches),
        )


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> EncodedBatch:
    """Encode texts; sequences that are ids already are taken as they are. Documents without tokens are left out.

    A function of its arguments alone, which can be sent to another process as they can.

    >>> batch = encode_documents(tokenizer, [Document("a cat", "a.txt"), Document("", "b.npy", np.array([7, 8]))])
    >>> batch.lengths, batch.characters
    (array([2, 2]), array([5, 0]))
    """
    texts = [document.text for document in documents]
    ids, lengths = tokenizer.encode_arrays(texts)
    contents = [text.encode() for text in texts]
    if any(document.ids is not None for document in documents):
        ids, lengths = _with_given_ids(documents, ids, lengths)
        contents = [
            content if document.ids is None else document.ids.astype("<i8").tobytes()
            for document, content in zip(documents, contents, strict=True)
        ]
    hashes = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    is_text = np.fromiter((document.ids is None for document in documents), bool, len(documents))
    unknown = tokenizer.unknown_id
    batch = EncodedBatch(
        ids,
        lengths,
        [document.source for document in documents],
        np.fromiter(map(len, texts), np.int64, len(texts)),
        np.fromiter(map(len, contents), np.int64, len(texts)) * is_text,
        np.frombuffer(hashes, np.dtype("<u8")),
        num_read=len(documents),
        unknown_tokens=0 if unknown is None else int(np.count_nonzero(ids == unknown)),
    )
    return batch.where(lengths > 0)


def _with_given_ids(
    documents: Sequence[Document], ids: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put the documents' own ids in the places of what their empty texts were encoded to."""
    encoded = np.split(ids, np.cumsum(lengths)[:-1])
    parts = [part if document.ids is None else document.ids for document, part in zip(documents, encoded, strict=True)]
    for document in documents:
        if document.ids is not None and len(document.ids) and int(document.ids.max()) >= 2**32:
            raise ValueError(
                f"{document.source} holds token id {int(document.ids.max())}, which no vocabulary has; check the column"
            )
    return np.concatenate(parts).astype(np.uint32), np.fromiter(map(len, parts), np.int64, len(parts))


def encode_batch(tokenizer: Tokenizer, batch: DocumentBatch) -> EncodedBatch:
    """`encode_documents`, with the batch's position."""
    return replace(encode_documents(tokenizer, batch.documents), position=batch.position)


def read_batches(corpus: Corpus) -> Iterator[DocumentBatch]:
    """The documents of a corpus in lists of about `BATCH_CHARACTERS`."""
    batch: list[Document] = []
    size = num_documents = 0

    def finished() -> DocumentBatch:
        return DocumentBatch(batch, Position(num_documents, corpus.empty_documents, corpus.bytes_done))

    for document in corpus:
        batch.append(document)
        num_documents += 1
        size += len(document.text) if document.ids is None else len(document.ids)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield finished()
            batch, size = [], 0
    if batch:
        yield finished()


def encode_threaded(tokenizer: Tokenizer, batches: Iterable[DocumentBatch], workers: int) -> Iterator[EncodedBatch]:
    """Encode with worker threads, in order. Two batches more than workers are read ahead, to keep them busy.

    Each worker takes a batch of its own. That is quicker than the threads which `tokenizers` starts inside a batch,
    because the ids are handed over in parallel too; those are switched off meanwhile, or both would fight for the
    cores.
    """
    pending: deque[Future[EncodedBatch]] = deque()
    batches = iter(batches)
    with _one_thread_per_batch():
        pool = ThreadPoolExecutor(workers)
        try:
            while True:
                for batch in islice(batches, workers + 2 - len(pending)):
                    pending.append(pool.submit(encode_batch, tokenizer, batch))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_per_batch() -> Iterator[None]:
    before = os.environ.get(TOKENIZER_THREADS)
    os.environ[TOKENIZER_THREADS] = "false"  # read at every call
    try:
        yield
    finally:
        del os.environ[TOKENIZER_THREADS]
        if before is not None:
            os.environ[TOKENIZER_THREADS] = before
