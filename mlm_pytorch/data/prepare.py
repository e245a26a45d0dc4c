"""Corpus -> store, streaming.

    read a batch of documents  (this thread: decompress, parse)
    encode it                  (worker threads: `tokenizers` works outside the interpreter's lock)
    hold out, cut, write       (this thread, in the order of the corpus, whatever finishes first)

Memory holds a few batches, one shard per split and the held-out documents. The store is built in a folder beside its
place and renamed when complete: after an error, a full disk or Ctrl-C nothing is left, and after a kill the next start
removes what was.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from mlm_pytorch.data.corpus import Corpus, EncodingErrors, SplitText
from mlm_pytorch.data.encode import EncodedBatch, encode_threaded, read_batches
from mlm_pytorch.data.holdout import HoldOut
from mlm_pytorch.data.partial import SPOOL, TOKENIZER, replacing
from mlm_pytorch.data.ray_engine import encode_on_ray
from mlm_pytorch.data.store import Manifest, SplitWriter
from mlm_pytorch.data.tokenizer import Tokenizer, train_tokenizer

Engine = Literal["threads", "ray"]

VALID_SHARE = 0.01


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
    engine: Engine = "threads",
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
    - `engine`: "ray" reads and encodes on a Ray cluster instead of in threads (see `encode_on_ray`).

    The same input gives the same bytes, however many workers, with either engine. Raises ValueError for what is wrong
    with the input, OSError when the disk is full; either way nothing is left in `out`. A store that stands there is
    replaced at the very end; anything else in `out` is refused.
    """
    started = time.perf_counter()
    if valid is not None and valid_share is not None:
        raise ValueError(f"valid files and valid_share {valid_share} are both given; choose one of them")
    share = VALID_SHARE if valid_share is None else valid_share
    if not 0 <= share < 1:
        raise ValueError(f"valid_share {share} is not a share; choose at least 0 and less than 1")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is too few; choose at least 1")
    if workers is not None and engine == "ray":
        raise ValueError(
            f"workers {workers} is for threads, but engine ray uses every core of its cluster; leave it out"
        )
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
        counts = _Counts()
        encode = partial(_encoded, tokenizer, None if engine == "ray" else workers or os.cpu_count() or 1, counts)
        if valid_documents is None and share > 0:
            hold_out = HoldOut(share, train, held_out)
            for batch in encode(documents, progress):
                hold_out.add(batch)
            hold_out.finish()
        else:
            for batch in encode(documents, progress):
                batch.write(train)
        _require_text(train, documents, corpus)
        if valid_documents is not None and valid is not None:
            for batch in encode(valid_documents, None):
                batch.write(held_out)
            _require_text(held_out, valid_documents, valid)
        splits = {writer.split: writer.finish() for writer in (train, held_out) if writer.documents}
        tokenizer.save(folder / TOKENIZER, model_max_length=seq_len)
        manifest = Manifest(train.dtype.name, seq_len, tokenizer.special, tokenizer.fingerprint, splits)
        manifest.write(folder)
    return PrepareReport(
        out=Path(out),
        documents=train.documents + held_out.documents,
        empty_documents=counts.empty
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
        unknown_tokens=counts.unknown,
        skipped_files=tuple(documents.skipped_files + (valid_documents.skipped_files if valid_documents else [])),
        tokenizer_trained=trained,
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Counts:
    """What no writer sees."""

    empty: int = 0  # documents with text but without tokens
    unknown: int = 0


def _encoded(
    tokenizer: Tokenizer,
    workers: int | None,  # None: engine ray
    counts: _Counts,
    corpus: Corpus,
    progress: Callable[[PrepareProgress], None] | None,
) -> Iterator[EncodedBatch]:
    num_tokens = 0
    if workers is None:
        batches = encode_on_ray(tokenizer, corpus)
    else:
        batches = encode_threaded(tokenizer, read_batches(corpus), workers)
    for batch in batches:
        counts.empty += batch.num_read - len(batch)
        counts.unknown += batch.unknown_tokens
        num_tokens += len(batch.ids)
        yield batch
        if progress is not None:
            at = batch.position
            progress(PrepareProgress("store", at.bytes_done, corpus.bytes_total, at.documents, num_tokens))


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


def _texts(corpus: Corpus, progress: Callable[[PrepareProgress], None] | None) -> Iterator[str]:
    for number, document in enumerate(corpus, 1):
        yield document.text
        if progress is not None and number % 1024 == 0:
            progress(PrepareProgress("tokenizer", corpus.bytes_done, corpus.bytes_total, number, 0))
