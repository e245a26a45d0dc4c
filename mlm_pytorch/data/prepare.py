"""Corpus -> store, streaming.

    read a batch of documents  (this thread: decompress, parse)
    encode it                  (worker threads: `tokenizers` works outside the interpreter's lock)
    hold out, cut, write       (this thread, in the order of the corpus, whatever finishes first)

Memory holds a few batches, one shard per split and the held-out documents. The store is built in a folder beside its
place and renamed when complete: after an error, a full disk or Ctrl-C nothing is left, and after a kill the next start
removes what was.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mlm_pytorch.data.corpus import Corpus, Document, EncodingErrors, SplitText
from mlm_pytorch.data.store import MANIFEST, Manifest, SplitWriter
from mlm_pytorch.data.tokenizer import Tokenizer, train_tokenizer

BATCH_CHARACTERS = 1 << 19
BATCH_DOCUMENTS = 4096
VALID_SHARE = 0.01
# A held-out set is measured again and again: more than this makes it slower, not better.
MAX_VALID_DOCUMENTS = 2000
MAX_VALID_TOKENS = 1 << 22
MAX_COPIES = 20  # of one text among them
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
LOCK, SPOOL, TOKENIZER = "preparing.lock", "spool", "tokenizer"


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation has come, as given to the `progress` callback."""

    stage: str  # "tokenizer" or "store"
    bytes_done: int  # of the corpus files, compressed
    bytes_total: int | None  # None where an input is a pipe
    documents: int
    tokens: int  # 0 in the stage "tokenizer"


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation made: counts over both splits, unless said otherwise."""

    out: Path
    documents: int
    empty_documents: int  # skipped: nothing but white space, or no token
    split_documents: int  # longer than a piece, so cut into several
    pieces: int
    tokens: int  # without framing
    characters: int
    bytes: int  # of the text in UTF-8
    valid_documents: int
    valid_pieces: int
    valid_tokens: int
    num_tokens: int  # of the vocabulary
    unknown_tokens: int
    skipped_files: tuple[Path, ...]  # in folders, by their suffix
    tokenizer_trained: bool
    seconds: float

    @property
    def valid_share(self) -> float:
        """Share of the documents that are held out."""
        return self.valid_documents / self.documents

    @property
    def characters_per_token(self) -> float:
        """How much text a token stands for."""
        return self.characters / self.tokens

    @property
    def unknown_rate(self) -> float:
        """Share of tokens that the tokenizer does not know."""
        return self.unknown_tokens / self.tokens


def prepare(
    corpus: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    seq_len: int = 512,
    valid: Sequence[str | Path] | None = None,
    valid_share: float | None = None,
    column: str | None = None,
    split_text: SplitText | None = None,
    encoding_errors: EncodingErrors = "strict",
    workers: int | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
) -> PrepareReport:
    """Write the store `out` from the documents of `corpus` (see `Corpus` for paths and options).

    - `tokenizer` None: one of `vocab_size` (None: chosen by the amount of text) is trained first, on a sample of the
      corpus.
    - `seq_len`: limit of a piece with its framing. Longer documents are cut into several; nothing is dropped or joined.
    - Held out as split "valid": the documents of `valid` if given, else a `valid_share` (default 1%) of the corpus,
      chosen by a hash of the text: at least one document of two or more, at most 2,000; 0 holds nothing out. Equal
      documents fall on the same side.
    - `workers`: encoding threads; None is one per CPU core.

    The same input gives the same bytes, however many workers. Raises ValueError for what is wrong with the input,
    OSError when the disk is full; either way nothing is left in `out`. A store that stands there is replaced at the
    very end; anything else in `out` is refused.
    """
    started = time.perf_counter()
    if valid is not None and valid_share is not None:
        raise ValueError(f"valid files and valid_share {valid_share} are both given; choose one of them")
    share = VALID_SHARE if valid_share is None else valid_share
    if not 0 <= share < 1:
        raise ValueError(f"valid_share {share} is not a share; choose at least 0 and less than 1")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is too few; choose at least 1")
    if tokenizer is not None and vocab_size is not None:
        raise ValueError(
            f"vocab_size {vocab_size} is for training a tokenizer, but one was given; leave out one of them"
        )
    if tokenizer is not None:
        _max_piece(tokenizer, seq_len)  # fails early
    options = {"column": column, "split_text": split_text, "encoding_errors": encoding_errors}
    documents = Corpus(corpus, **options)
    valid_documents = None if valid is None else Corpus(valid, **options)

    with replacing(Path(out)) as folder:
        trained = tokenizer is None
        if tokenizer is None:
            documents.spool(folder / SPOOL)
            tokenizer = train_tokenizer(_texts(documents, progress), vocab_size)
        max_piece = _max_piece(tokenizer, seq_len)
        train = SplitWriter(folder, "train", tokenizer.special.num_tokens, max_piece)
        held_out = SplitWriter(folder, "valid", tokenizer.special.num_tokens, max_piece)
        with _Encoder(tokenizer, workers or os.cpu_count() or 1) as encoder:
            batches = encoder.encode(documents, progress)
            if valid_documents is None and share > 0:
                write_splits(batches, train, held_out, share)
            else:
                for batch in batches:
                    batch.write(train)
            _require_text(train, documents, corpus)
            if valid_documents is not None and valid is not None:
                for batch in encoder.encode(valid_documents):
                    batch.write(held_out)
                _require_text(held_out, valid_documents, valid)
        splits = {writer.split: writer.finish() for writer in (train, held_out) if writer.documents}
        tokenizer.save(folder / TOKENIZER, model_max_length=seq_len)
        manifest = Manifest(train.dtype.name, seq_len, tokenizer.special, tokenizer.fingerprint, splits)
        manifest.write(folder)
    return PrepareReport(
        out=Path(out),
        documents=train.documents + held_out.documents,
        empty_documents=encoder.empty
        + documents.empty_documents
        + (valid_documents.empty_documents if valid_documents else 0),
        split_documents=train.split_documents + held_out.split_documents,
        pieces=train.pieces + held_out.pieces,
        tokens=train.tokens + held_out.tokens,
        characters=train.characters + held_out.characters,
        bytes=train.bytes + held_out.bytes,
        valid_documents=held_out.documents,
        valid_pieces=held_out.pieces,
        valid_tokens=held_out.tokens,
        num_tokens=tokenizer.special.num_tokens,
        unknown_tokens=encoder.unknown,
        skipped_files=tuple(documents.skipped_files + (valid_documents.skipped_files if valid_documents else [])),
        tokenizer_trained=trained,
        seconds=time.perf_counter() - started,
    )


def _max_piece(tokenizer: Tokenizer, seq_len: int) -> int:
    """Room for content in a piece."""
    framing = len(tokenizer.special.prefix) + len(tokenizer.special.suffix)
    if seq_len <= framing:
        raise ValueError(
            f"seq_len {seq_len} leaves no room beside the {framing} tokens that frame a piece; choose a larger one"
        )
    return seq_len - framing


def _require_text(writer: SplitWriter, corpus: Corpus, paths: Sequence[str | Path]) -> None:
    if not writer.documents:
        named = ", ".join(map(str, islice(paths, 3))) + (", …" if len(paths) > 3 else "")
        held = f"only {corpus.empty_documents:,} empty documents" if corpus.empty_documents else "no documents"
        raise ValueError(f"{named} holds no text ({held}); check the path and the format")


# -- encoding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedBatch:
    """Documents on the way to a writer, none of them without tokens. Arrays and lists have one entry per document."""

    ids: np.ndarray  # of all documents end to end, uint32
    lengths: np.ndarray  # tokens, int64
    sources: list[str | None]
    characters: np.ndarray
    bytes: np.ndarray  # in UTF-8
    hashes: np.ndarray  # of the text, uint64

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, chosen: np.ndarray) -> "EncodedBatch":
        """The documents at which `chosen` (bool) is True."""
        if chosen.all():
            return self
        return EncodedBatch(
            self.ids[np.repeat(chosen, self.lengths)],
            self.lengths[chosen],
            [source for source, keep in zip(self.sources, chosen, strict=True) if keep],
            self.characters[chosen],
            self.bytes[chosen],
            self.hashes[chosen],
        )

    def write(self, writer: SplitWriter) -> None:
        """Add all documents to a split."""
        writer.add(self.ids, self.lengths, self.sources, int(self.characters.sum()), int(self.bytes.sum()))

    @staticmethod
    def join(batches: Sequence["EncodedBatch"]) -> "EncodedBatch":
        """The documents of at least one batch, in order."""
        return EncodedBatch(
            np.concatenate([batch.ids for batch in batches]),
            np.concatenate([batch.lengths for batch in batches]),
            [source for batch in batches for source in batch.sources],
            np.concatenate([batch.characters for batch in batches]),
            np.concatenate([batch.bytes for batch in batches]),
            np.concatenate([batch.hashes for batch in batches]),
        )


class _Encoder:
    """Encodes corpora in their order with worker threads, and counts what no writer sees. A context manager.

    Each worker takes a batch of its own. That is quicker than the threads which `tokenizers` starts inside a batch,
    because the ids are handed over in parallel too; those are switched off meanwhile, or both would fight for the
    cores.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int):
        self.tokenizer, self.workers = tokenizer, workers
        self.empty = 0  # documents with text but without tokens
        self.unknown = 0

    def __enter__(self) -> "_Encoder":
        self._variable_before = os.environ.get(TOKENIZER_THREADS)
        os.environ[TOKENIZER_THREADS] = "false"  # read at every call
        self._pool = ThreadPoolExecutor(self.workers)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        del os.environ[TOKENIZER_THREADS]
        if self._variable_before is not None:
            os.environ[TOKENIZER_THREADS] = self._variable_before

    def encode(
        self, corpus: Corpus, progress: Callable[[PrepareProgress], None] | None = None
    ) -> Iterator[EncodedBatch]:
        """Yield the corpus in batches. Two batches more than workers are read ahead, to keep them busy."""
        pending: deque[tuple[Future[EncodedBatch], int, int]] = deque()
        batches = _batches(corpus)
        num_documents = num_tokens = 0
        while True:
            for documents in islice(batches, self.workers + 2 - len(pending)):
                pending.append((self._pool.submit(self._encode, documents), len(documents), corpus.bytes_done))
            if not pending:
                return
            future, documents_read, bytes_done = pending.popleft()
            batch = future.result()
            self.empty += documents_read - len(batch)
            if self.tokenizer.unknown_id is not None:
                self.unknown += int(np.count_nonzero(batch.ids == self.tokenizer.unknown_id))
            num_documents += documents_read
            num_tokens += len(batch.ids)
            if len(batch):
                yield batch
            if progress is not None:
                progress(PrepareProgress("store", bytes_done, corpus.bytes_total, num_documents, num_tokens))

    def _encode(self, documents: list[Document]) -> EncodedBatch:
        texts = [document.text for document in documents]
        ids, lengths = self.tokenizer.encode_arrays(texts)
        encoded = [text.encode() for text in texts]
        hashes = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in encoded)
        batch = EncodedBatch(
            ids,
            lengths,
            [document.source for document in documents],
            np.fromiter(map(len, texts), np.int64, len(texts)),
            np.fromiter(map(len, encoded), np.int64, len(texts)),
            np.frombuffer(hashes, np.dtype("<u8")),
        )
        return batch.where(lengths > 0)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents of about `BATCH_CHARACTERS`."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _texts(corpus: Corpus, progress: Callable[[PrepareProgress], None] | None) -> Iterator[str]:
    for number, document in enumerate(corpus, 1):
        yield document.text
        if progress is not None and number % 1024 == 0:
            progress(PrepareProgress("tokenizer", corpus.bytes_done, corpus.bytes_total, number, 0))


# -- holding out -------------------------------------------------------------------------------------------------------


def write_splits(batches: Iterable[EncodedBatch], train: SplitWriter, held_out: SplitWriter, share: float) -> None:
    """Write each document to one of two splits by a hash of its text: one pass, bounded memory, any corpus.

    Held out are the hashes up to a limit, which stands at `share` of all hashes (or at the lowest hash seen, so that
    there is one document at least) and is halved whenever more is held than a held-out set needs. What it uncovers goes
    to `train`. Since it only sinks, it is one number in the end: equal texts lie on one side. A text with more than
    `MAX_COPIES` copies is not held out, as long as there are others.
    """
    bound = int(share * 2**64)
    limit = lowest = 2**64 - 1
    held: EncodedBatch | None = None
    banned = np.empty(0, np.uint64)
    for batch in batches:
        candidates = ~np.isin(batch.hashes, banned)
        lowest = min(lowest, int(batch.hashes[candidates].min(initial=2**64 - 1)))
        limit = min(limit, max(bound - 1, lowest))
        chosen = candidates & (batch.hashes <= limit)
        batch.where(~chosen).write(train)
        if not chosen.any():
            continue
        held = EncodedBatch.join([held, batch.where(chosen)] if held else [batch.where(chosen)])
        hashes, copies = np.unique(held.hashes, return_counts=True)
        common = hashes[copies > MAX_COPIES]
        banned = np.union1d(banned, common)
        while True:
            keep = (held.hashes <= limit) & ~np.isin(held.hashes, common)
            if not keep.any():
                keep[0] = True
            if not keep.all():
                held.where(~keep).write(train)
                held = held.where(keep)
            too_much = len(held) > MAX_VALID_DOCUMENTS or len(held.ids) > MAX_VALID_TOKENS
            if not too_much or held.hashes.min() == held.hashes.max():
                break
            bound //= 2
            limit = min(limit, max(bound - 1, lowest))
    if held is None:
        return
    keep = ~np.isin(held.hashes, banned)
    if not keep.any() or not train.documents:
        keep[:] = False
        keep[0] = len(held) > 1 or train.documents > 0
    held.where(~keep).write(train)
    held.where(keep).write(held_out)


# -- the folder --------------------------------------------------------------------------------------------------------

OWN_NAMES = re.compile(rf"{re.escape(MANIFEST)}|{LOCK}|{SPOOL}|{TOKENIZER}|(train|valid)-\d{{5,}}\.arrow")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to build a store in, which takes the place of `out` when the block ends without an error.

    It lies beside `out` (a rename cannot cross disks) and is locked while in use. One that a killed run left is cleared
    first. Raises ValueError when `out` holds anything but a store, or another process is writing it; OSError when the
    disk is full.
    """
    out = out.expanduser().resolve()
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if _is_store(replaced) and not out.exists():  # killed between the two renames below
            replaced.rename(out)
        _check_replaceable(out)
        partial.mkdir(exist_ok=True)
        for path in partial.iterdir():
            if not OWN_NAMES.fullmatch(path.name):
                raise ValueError(f"{partial} holds {path.name!r}, which no preparation wrote; move it away")
        lock = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}: {error.filename}); choose another place"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"{out} is being prepared by another process; wait for it or choose another place") from None
    complete = False
    try:
        _clear(partial, but=LOCK)
        (partial / SPOOL).mkdir()
        yield partial
        shutil.rmtree(partial / SPOOL)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if out.exists():
            if replaced.exists():
                _clear(replaced)
            out.rename(replaced)
        partial.rename(out)
        (out / LOCK).unlink()
        _sync(out.parent)
        complete = True
        if replaced.exists():
            _clear(replaced)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f"the disk of {out.parent} is full; free some space or choose another place (nothing was left behind)"
        raise OSError(error.errno, place) from None
    finally:
        if not complete and partial.exists():
            _clear(partial)
        os.close(lock)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; choose another place for the store")
    others = sorted(path.name for path in out.iterdir() if not OWN_NAMES.fullmatch(path.name))
    if others or (any(out.iterdir()) and not _is_store(out)):
        held = f"holds {others[0]!r}" if others else "is not empty"
        raise ValueError(f"{out} {held} and is not a store that could be replaced; choose an empty or new folder")


def _is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _clear(folder: Path, but: str | None = None) -> None:
    """Delete what a store consists of, and the folder if that was all; what we did not write stays."""
    for path in list(folder.iterdir()):
        if path.name == but or not OWN_NAMES.fullmatch(path.name):
            continue
        if path.name in (SPOOL, TOKENIZER):
            shutil.rmtree(path)
        else:
            path.unlink()
    if but is None and not any(folder.iterdir()):
        folder.rmdir()


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
