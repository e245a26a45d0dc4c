"""Corpus -> store, streaming.

    read a batch of documents  (this thread: decompress, parse)
    encode it                  (worker threads: `tokenizers` works outside the interpreter's lock)
    hold out, cut, write       (this thread, in the order of the corpus, whatever finishes first)

Memory holds a few batches, one shard per split and the held-out documents. The store is built in a folder beside its
place and renamed when complete. Whenever a shard is complete a journal says how far things have come: after a kill,
Ctrl-C or a full disk the same command goes on from there, and ends with the bytes of an uninterrupted run.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlm_pytorch.data.corpus import Corpus, DocumentStream, EncodingErrors, SplitText
from mlm_pytorch.data.duplicates import Dropped, HashLog, repeated_documents, write_dropped
from mlm_pytorch.data.encode import (
    EncodedBatch,
    encode_threaded,
    hash_of,
    read_batches,
)
from mlm_pytorch.data.identity import identity_of
from mlm_pytorch.data.journal import State
from mlm_pytorch.data.manifest import Manifest
from mlm_pytorch.data.overlaps import each_file_in_one_place, places_of
from mlm_pytorch.data.partial import DUPLICATES, SPOOL, TOKENIZER, Partial, building
from mlm_pytorch.data.pieces import Cutting, LongDocuments
from mlm_pytorch.data.progress import Meter, PrepareProgress
from mlm_pytorch.data.ray_engine import encode_on_ray
from mlm_pytorch.data.tokenizer import Tokenizer, TokenizerReport, load_tokenizer, train_tokenizer
from mlm_pytorch.data.writing import Writing

VALID_SHARE = 0.01

Engine = Literal["threads", "ray"]


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation made: counts over both splits, unless said otherwise."""

    out: Path
    documents: int
    empty_documents: int  # skipped: nothing but white space, or no token
    duplicate_documents: int  # whose text came before: in the store, unless they were dropped
    duplicates_dropped: bool
    split_documents: int  # longer than a piece, so cut: into several, or its end off
    dropped_tokens: int  # cut off from long documents
    repeated_tokens: int  # stored more than once, because windows overlap
    pieces: int
    tokens: int  # without framing
    characters: int
    bytes: int  # of the text in UTF-8
    valid_documents: int
    valid_pieces: int
    valid_tokens: int
    valid_documents_trained_on: int  # of named files: their text is in the corpus too
    num_tokens: int  # of the vocabulary
    skipped_files: tuple[Path, ...]  # in folders, by their suffix
    repeats: dict[str, int]  # of a mixture: how often each part was begun again
    tokenizer_trained: bool
    tokenizer_kind: str | None  # of one that was trained, or made for ids
    tokenizer: TokenizerReport  # what it made of the corpus
    resumed_documents: int  # read by an earlier preparation that was interrupted
    seconds: float

    @property
    def valid_share(self) -> float:
        """Share of the documents that are held out."""
        return self.valid_documents / self.documents

    @property
    def corpus_tokens(self) -> int:
        """What the text was encoded to: each token once, whether it is stored or not."""
        return self.tokens + self.dropped_tokens - self.repeated_tokens


def prepare(
    corpus: Sequence[str | Path] | DocumentStream,
    out: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    tokenizer_kind: str | None = None,
    seq_len: int = 512,
    long_documents: LongDocuments = "split",
    overlap: int = 0,
    drop_duplicates: bool = False,
    valid: Sequence[str | Path] | DocumentStream | None = None,
    valid_share: float | None = None,
    column: str | None = None,
    split_text: SplitText | None = None,
    encoding_errors: EncodingErrors = "strict",
    workers: int | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
    notice: Callable[[str], None] = lambda _: None,
    engine: Engine = "threads",
) -> PrepareReport:
    """Write the store `out` from the documents of `corpus` (see `Corpus` for paths and options).

    - `tokenizer` None: one of `vocab_size` (None: chosen by the amount of text) and `tokenizer_kind` is trained first,
      on a sample of the corpus. A corpus of ids needs the tokenizer that made them, or that of `tokenizer_for_ids`.
    - `seq_len`: limit of a piece with its framing. `long_documents` says what becomes of longer ones: "split" into
      several pieces, nothing dropped or repeated; "windows" of which neighbours share `overlap` tokens; "truncate".
    - Held out as split "valid": the documents of `valid` if given, else a `valid_share` (default 1%) of the corpus,
      chosen by a hash of the text, at most 2,000 documents; 0 holds nothing out. Of a small corpus it is one document
      at least that is no large share of the text, if there is one. Equal documents fall on the same side, and what has
      more than 20 copies is trained on.
    - `drop_duplicates`: of documents with the same text only the first is stored (one of `valid`, if there is one
      there). They are counted either way. Needs a pass over the corpus before the first shard.
    - A file that is named twice is read once, and one that is also among `valid` is not trained on.
    - `workers`: encoding threads; None is one per CPU core. With `engine` "ray" a Ray cluster reads and encodes (see
      `encode_on_ray`).
    - `notice` is told, in single lines, what a user should know at once: which files are left out, whether an
      interrupted preparation is continued, that the disk will be too small, that much of a corpus of few documents is
      held out, or nothing, and that documents of `valid` are in the corpus as well.

    The same input gives the same bytes, whatever encodes it, and however often it was interrupted: files, options and
    tokenizer unchanged, a second call goes on where the first came to. Pipes start over. Raises ValueError for what is
    wrong with the input, and leaves nothing then, unless shards were complete already; OSError when the disk is full.
    A store that stands in `out` is replaced at the very end; anything else there is refused.
    """
    started = time.perf_counter()
    if valid is not None and valid_share is not None:
        raise ValueError(f"valid files and valid_share {valid_share} are both given; choose one of them")
    share = VALID_SHARE if valid_share is None else valid_share
    if not 0 <= share < 1:
        raise ValueError(f"valid_share {share} is not a share; choose at least 0 and less than 1")
    for name, value in (("vocab_size", vocab_size), ("tokenizer_kind", tokenizer_kind)):
        if value is not None and tokenizer is not None:
            raise ValueError(f"{name} {value} is for training a tokenizer, but one was given; leave out one of them")
    cutting = Cutting(seq_len, long_documents, overlap)
    options: dict[str, Any] = {"column": column, "split_text": split_text, "encoding_errors": encoding_errors}
    if tokenizer is not None:
        cutting.max_piece(tokenizer.special)  # fails early
        options["num_tokens"] = tokenizer.special.num_tokens
    corpora = {"train": _opened(corpus, options)} | ({} if valid is None else {"valid": _opened(valid, options)})
    check_options(workers, engine, drop_duplicates=drop_duplicates, corpora=corpora.values())
    corpora = each_file_in_one_place(corpora, notice)  # before the identity, which is of what is read
    vocabulary = [vocab_size, tokenizer_kind] if tokenizer is None else tokenizer.fingerprint
    identity = identity_of(corpora, vocabulary, [asdict(cutting), drop_duplicates, share])
    totals = [reader.bytes_total for reader in corpora.values()]
    meter = Meter(progress, notice, None if None in totals else sum(filter(None, totals)))
    with building(Path(out), identity, notice) as partial:
        trained = tokenizer is None
        if trained or drop_duplicates or any(reader.begins_again for reader in corpora.values()):
            _spool(corpora, partial.folder / SPOOL)
        if tokenizer is None:
            making = {"vocab_size": vocab_size} | ({} if tokenizer_kind is None else {"kind": tokenizer_kind})
            tokenizer = _trained_tokenizer(partial, corpora["train"], making, seq_len, meter)
        dropped = _find_dropped(partial, corpora, meter) if drop_duplicates else {}
        writing = Writing(
            partial.folder,
            tokenizer,
            cutting,
            hold_out_share=share if valid is None else 0,
            count_duplicates=not drop_duplicates,
            state=partial.state.part("writing") if "writing" in partial.state else None,
        )
        if writing.documents_read:
            notice(f"going on after {writing.documents_read:,} documents, where an earlier preparation was interrupted")
        resumed = writing.documents_read
        meter.begin("store", writing.bytes_done)
        workers = workers or os.cpu_count() or 1
        for split, reader in corpora.items():
            start = writing.positions[split]
            if engine == "ray":
                batches = encode_on_ray(tokenizer, reader, start)
            else:
                read = read_batches(reader, start, dropped.get(split, ()), workers)
                batches = encode_threaded(tokenizer, read, workers)
            with closing(batches) as encoded:
                _write(split, encoded, writing, partial, meter)
            if split == "train" and (said := writing.finish_holding_out()):
                notice(said)
            _require_text(writing, split, reader)
        trained_on = writing.count_held_out_trained_on() if valid is not None else 0
        if trained_on and not places_of(corpora["train"]) & places_of(corpora["valid"]):  # which was told before
            notice(
                f"{trained_on:,} of {writing.valid.documents:,} held-out documents are in the corpus as well, where "
                "they are trained on: what is measured on them says nothing about other text; --drop-duplicates takes "
                "them out of the corpus"
            )
        duplicates = partial.state.part("dropped").facts["count"] if drop_duplicates else writing.count_duplicates()
        tokenizer.save(partial.folder / TOKENIZER, model_max_length=seq_len)
        splits = {writer.split: writer.finish() for writer in writing.writers if writer.documents}
        about = (writing.train.dtype.name, seq_len, tokenizer.special, tokenizer.fingerprint)
        Manifest(*about, splits, long_documents, overlap).write(partial.folder)
    train, held_out = writing.writers
    return PrepareReport(
        out=Path(out),
        documents=train.documents + held_out.documents,
        empty_documents=writing.empty_documents,
        duplicate_documents=duplicates,
        duplicates_dropped=drop_duplicates,
        split_documents=train.cut_documents + held_out.cut_documents,
        dropped_tokens=train.dropped_tokens + held_out.dropped_tokens,
        repeated_tokens=train.repeated_tokens + held_out.repeated_tokens,
        pieces=train.pieces + held_out.pieces,
        tokens=train.tokens + held_out.tokens,
        characters=train.characters + held_out.characters,
        bytes=train.bytes + held_out.bytes,
        valid_documents=held_out.documents,
        valid_pieces=held_out.pieces,
        valid_tokens=held_out.tokens,
        valid_documents_trained_on=trained_on,
        num_tokens=tokenizer.special.num_tokens,
        skipped_files=tuple(path for reader in corpora.values() for path in reader.skipped_files),
        repeats=getattr(corpora["train"], "repeats", {}),
        tokenizer_trained=trained,
        tokenizer_kind=tokenizer.kind or (tokenizer_kind if trained else None),
        tokenizer=writing.counter.report(),
        resumed_documents=resumed,
        seconds=time.perf_counter() - started,
    )


def _spool(corpora: Mapping[str, DocumentStream], folder: Path) -> None:
    """Make pipes readable more than once."""
    for split, reader in corpora.items():
        (folder / split).mkdir(exist_ok=True)
        reader.spool(folder / split)


def _trained_tokenizer(
    partial: Partial, corpus: DocumentStream, making: Mapping[str, Any], seq_len: int, meter: Meter
) -> Tokenizer:
    """Train on the corpus, or load what an interrupted preparation trained."""
    folder = partial.folder / TOKENIZER
    if "tokenizer" in partial.state:
        tokenizer = load_tokenizer(folder)
        if tokenizer.fingerprint != partial.state.part("tokenizer").facts["fingerprint"]:
            raise ValueError(f"{folder} is not what was trained before; give the same command again to start over")
        return tokenizer

    def texts() -> Iterator[str]:
        number = 0
        for number, document in enumerate(corpus, 1):
            if document.ids is not None:
                raise ValueError(
                    f"{document.source} holds token ids, and no tokenizer was given; give the tokenizer that made "
                    "them, or --num-tokens with --mask-token-id and --pad-token-id or with --add-special-tokens"
                )
            yield document.text
            if number % 1024 == 0:
                meter.show(corpus.bytes_done, number)
        if not number:
            raise _no_text(corpus, corpus.empty_documents)
        meter.begin("training", corpus.bytes_done)  # nothing is left to be read
        meter.show(corpus.bytes_done, number)

    meter.begin("tokenizer")
    tokenizer = train_tokenizer(texts(), **making)
    tokenizer.save(folder, model_max_length=seq_len)
    partial.keep("tokenizer", State({"fingerprint": tokenizer.fingerprint}), {})
    return tokenizer


def _find_dropped(partial: Partial, corpora: Mapping[str, DocumentStream], meter: Meter) -> dict[str, Dropped]:
    """Which documents of each corpus repeat an earlier one. Held-out files come first, so that they stay whole and
    training does not see their texts.
    """
    path, scratch = partial.folder / DUPLICATES / "dropped.bin", partial.folder / DUPLICATES
    if "dropped" not in partial.state:
        meter.begin("duplicates")
        log = HashLog(scratch / "documents.bin", 2)
        firsts: dict[str, int] = {}
        bytes_before = bytes_done = 0
        for split in ("valid", "train"):
            if split not in corpora:
                continue
            firsts[split] = log.num_documents
            for batch in read_batches(corpora[split]):
                hashes = b"".join(hash_of(document, 16) for document in batch.documents)
                log.add(np.frombuffer(hashes, "<u8").reshape(-1, 2))
                bytes_done = bytes_before + batch.position.bytes_done
                meter.show(bytes_done, log.num_documents)
            bytes_before = bytes_done
        count = write_dropped(path, log.num_documents, repeated_documents(log, scratch))
        log.path.unlink()
        partial.keep("dropped", State({"firsts": firsts, "count": count}), {})
    firsts = partial.state.part("dropped").facts["firsts"]
    return {split: Dropped(path, first) for split, first in firsts.items()}


def _write(split: str, encoded: Iterable[EncodedBatch], writing: Writing, partial: Partial, meter: Meter) -> None:
    """Write a split's corpus, and keep the state whenever a shard is complete."""
    num_shards = len(writing.shards)
    for batch in encoded:
        writing.add(split, batch)
        if len(writing.shards) > num_shards:
            partial.keep("writing", writing.state(), writing.shards)
            num_shards = len(writing.shards)
        meter.check_disk(partial.folder, writing.bytes_done, writing.bytes_out)
        meter.show(writing.bytes_done, writing.documents_read, writing.tokens_read, writing.bytes_out)


def _no_text(corpus: DocumentStream, empty_documents: int) -> ValueError:
    held = f"only {empty_documents:,} empty documents" if empty_documents else "no documents"
    return ValueError(f"{_named(corpus)} holds no text ({held}); check the path and the format")


def _named(corpus: DocumentStream) -> str:
    return ", ".join(file.label for file in islice(corpus.files, 3)) + (", …" if len(corpus.files) > 3 else "")


def _require_text(writing: Writing, split: str, corpus: DocumentStream) -> None:
    if any(writer.documents for writer in writing.writers if writer.split == split):
        return
    position = writing.positions[split]
    if position.documents and not writing.documents_without_tokens:
        named = _named(corpus)
        raise ValueError(f"every document of {named} repeats one that is held out; leave out --drop-duplicates")
    raise _no_text(corpus, position.empty_documents)


def check_options(
    workers: int | None, engine: Engine, *, drop_duplicates: bool, corpora: Iterable[DocumentStream]
) -> None:
    """Raise ValueError where options of a preparation contradict each other, or what is to be read."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is too few; choose at least 1")
    if engine == "ray" and workers is not None:
        raise ValueError(
            f"workers {workers} is for threads, but engine ray uses every core of its cluster; leave it out"
        )
    if engine == "ray" and drop_duplicates:
        raise ValueError(
            "drop_duplicates reads the corpus on one machine, so engine ray does not do it; leave out one of them"
        )
    if drop_duplicates and any(reader.begins_again for reader in corpora):
        raise ValueError(
            "drop_duplicates would take out what a mixture repeats on purpose; leave it out, or drop the duplicates of "
            "each part beforehand"
        )


def _opened(corpus: Sequence[str | Path] | DocumentStream, options: Mapping[str, Any]) -> DocumentStream:
    return Corpus(corpus, **options) if isinstance(corpus, Sequence | str | Path) else corpus
