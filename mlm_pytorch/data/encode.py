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
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from mlm_pytorch.data.corpus import Corpus, Document, DocumentStream
from mlm_pytorch.data.store import SplitWriter
from mlm_pytorch.data.tokenizer import Tokenizer, count_words

# Larger batches cost less per token, since memory is handed back less often; smaller ones end at the same time.
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1 << 13
CHARACTERS_IN_FLIGHT = 1 << 22  # with all workers: an encoding takes about a hundred times the memory of its text
MAX_DOCUMENT_CHARACTERS = 1 << 28
WORDS_EVERY = 8  # texts: splitting all of them would take 2% of what encoding takes
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
ARRAYS = ("ids", "lengths", "characters", "bytes", "hashes")  # of an EncodedBatch


@dataclass(frozen=True)
class Position:
    """How far a corpus has been read, and where it stood when the file at hand began."""

    documents: int = 0
    empty_documents: int = 0  # not among the documents: the corpus leaves them out
    bytes_done: int = 0  # of its files, compressed
    file: int = 0
    documents_before: int = 0
    empty_before: int = 0
    bytes_before: int = 0

    def next_file(self) -> "Position":
        """The same place, as the beginning of the next file."""
        before = (self.documents, self.empty_documents, self.bytes_done)
        return Position(*before, self.file + 1, *before)


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
    words: int  # between white space, in some of its texts
    word_tokens: int  # of these texts
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

    def copy(self) -> "EncodedBatch":
        """The same in memory of its own: a slice keeps all of its batch in memory."""
        arrays = {name: getattr(self, name).copy() for name in ARRAYS}
        return replace(self, **arrays, sources=list(self.sources))

    def write(self, writer: SplitWriter) -> None:
        """Add all documents to a split."""
        if len(self):
            sizes = int(self.characters.sum()), int(self.bytes.sum())
            writer.add(self.ids, self.lengths, self.sources, *sizes, self.hashes)

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
            words=sum(batch.words for batch in batches),
            word_tokens=sum(batch.word_tokens for batch in batches),
        )


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> EncodedBatch:
    """Encode texts; of sequences that are ids already take the content, without padding and frame at their ends.

    Documents without tokens are left out.

    A function of its arguments alone, which can be sent to another process as they can.

    >>> batch = encode_documents(tokenizer, [Document("a cat", "a.txt"), Document("", "b.npy", np.array([7, 8]))])
    >>> batch.lengths, batch.characters
    (array([2, 2]), array([5, 0]))
    """
    texts = [document.text for document in documents]
    contents = [_content(document) for document in documents]
    sizes = np.fromiter(map(len, contents), np.int64, len(contents))
    if all(document.ids is None for document in documents):
        ids, lengths = tokenizer.encode_arrays(texts)
    else:
        ids, lengths = _with_given_ids(tokenizer, documents)
        sizes *= np.fromiter((document.ids is None for document in documents), bool, len(documents))
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    hashes = np.frombuffer(digests, np.dtype("<u8"))
    # By their hashes, so that it does not matter how the documents come in batches.
    counted = [index for index in np.flatnonzero(hashes % WORDS_EVERY == 0).tolist() if documents[index].ids is None]
    batch = EncodedBatch(
        ids,
        lengths,
        [document.source for document in documents],
        np.fromiter(map(len, texts), np.int64, len(texts)),
        sizes,
        hashes,
        num_read=len(documents),
        words=count_words([texts[index] for index in counted]),
        word_tokens=int(lengths[counted].sum()),
    )
    return batch.where(lengths > 0)


def hash_of(document: Document, num_bytes: int) -> bytes:
    """Equal documents have equal hashes, and others in practice not."""
    return hashlib.blake2b(_content(document), digest_size=num_bytes).digest()


def _content(document: Document) -> bytes:
    """What makes two documents equal: the text in UTF-8, or the ids."""
    return document.text.encode() if document.ids is None else document.ids.astype("<i8").tobytes()


def _with_given_ids(tokenizer: Tokenizer, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Ids end to end and lengths, as `encode_arrays`, of documents of which some are ids."""
    texts = [document.text for document in documents if document.ids is None]
    encoded, sizes = tokenizer.encode_arrays(texts) if texts else (np.empty(0), np.empty(0, np.int64))
    of_texts = iter(np.split(encoded, np.cumsum(sizes)[:-1]))
    bare = tokenizer.special.content
    parts = [next(of_texts) if document.ids is None else bare(document.ids) for document in documents]
    ids = np.concatenate([np.empty(0, np.int64), *parts])
    if len(ids) and int(ids.max()) >= 2**32:
        raise ValueError(f"the corpus holds token id {int(ids.max())}, which no vocabulary has; check the column")
    return ids.astype(np.uint32), np.fromiter(map(len, parts), np.int64, len(parts))


def encode_batch(tokenizer: Tokenizer, batch: DocumentBatch) -> EncodedBatch:
    """`encode_documents`, with the batch's position."""
    return replace(encode_documents(tokenizer, batch.documents), position=batch.position)


def read_batches(
    corpus: DocumentStream, start: Position = Position(), dropped: Container[int] = (), workers: int = 1
) -> Iterator[DocumentBatch]:
    """The documents of a corpus from `start` on, in lists of about `BATCH_CHARACTERS` (less where more than four
    workers hold one each), without those whose numbers are `dropped`. The last one may be empty; its position is the
    end.

    Of a `Corpus`, files before the start are not opened; of the file at hand, and of anything else, the documents
    before the start are read and passed over.
    """
    batch: list[Document] = []
    size, number, begin = 0, start.documents_before, start
    enough = min(BATCH_CHARACTERS, CHARACTERS_IN_FLIGHT // workers)

    def position() -> Position:
        return replace(
            begin,
            documents=number,
            empty_documents=begin.empty_before + part.empty_documents,
            bytes_done=begin.bytes_before + part.bytes_done,
        )

    for part in _files_of(corpus)[start.file :]:
        for document in part:
            number += 1
            if number <= start.documents:
                continue
            if number - 1 not in dropped:
                batch.append(_checked(document))
                size += len(document.text) if document.ids is None else len(document.ids)
            if size >= enough or len(batch) >= BATCH_DOCUMENTS:
                yield DocumentBatch(batch, position())
                batch, size = [], 0
        begin = position().next_file()
    yield DocumentBatch(batch, begin)


def _files_of(corpus: DocumentStream) -> Sequence[DocumentStream]:
    """Parts of which one follows the other."""
    if not isinstance(corpus, Corpus):
        return [corpus]
    parts = [copy(corpus) for _ in corpus.files]
    for part, file in zip(parts, corpus.files, strict=True):
        part.files = [file]
    return parts


def _checked(document: Document) -> Document:
    if len(document.text) > MAX_DOCUMENT_CHARACTERS:
        raise ValueError(
            f"a document of {document.source} has {len(document.text):,} characters, and at most "
            f"{MAX_DOCUMENT_CHARACTERS:,} fit into memory; split it, or read the file by --split-text line or paragraph"
        )
    return document


def encode_threaded(
    tokenizer: Tokenizer, batches: Iterable[DocumentBatch], workers: int
) -> Generator[EncodedBatch, None, None]:
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
