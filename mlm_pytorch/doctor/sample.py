"""Read a bounded part of a corpus, spread over all of it, and say exactly what was read.

    places:       files -> byte ranges, evenly over the bytes of all files
    Tolerant:     a Corpus that goes on after a record that it cannot read, and counts   (`tolerant`)
    Spread:       documents in -> the ones kept, evenly over those that came
    draw_sample:  paths -> Sample

A corpus of up to `READ_BYTES` is read whole. Of a larger one `PLACES` ranges are read: of plain lines from the middle
of a file as well, of everything else from a file's beginning on. They are read in an order that leaves off evenly where
`READ_SECONDS` are over.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mlm_pytorch.data.corpus import MAGIC, CorpusFile, Document
from mlm_pytorch.data.files import suffixes
from mlm_pytorch.data.formats.text import SplitText
from mlm_pytorch.data.lines import EncodingErrors, compression_of
from mlm_pytorch.data.overlaps import each_file_in_one_place
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.doctor.repeats import Repeats
from mlm_pytorch.doctor.tolerant import Tolerant, reads_single_lines

READ_BYTES = 1 << 26  # on disk
READ_CHARACTERS = 1 << 27  # of text, which a compressed file has many times as much of
READ_DOCUMENTS = 1_000_000
READ_SECONDS = 8.0
PLACES = 64
KEEP_CHARACTERS, KEEP_DOCUMENTS = 1 << 24, 40_000
LONGEST_KEPT = 1 << 18  # characters of one document

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / φ: its multiples fall as evenly as numbers can


@dataclass(frozen=True)
class Sampled:
    """A document of a sample: its text, cut at `LONGEST_KEPT` characters, or its ids; and how long it really is."""

    text: str
    ids: np.ndarray | None  # (length,) int64 for a document that is token ids
    characters: int  # of the whole text, or ids of the whole sequence
    source: str | None


@dataclass(frozen=True)
class Sample:
    """Documents from all over a corpus, and what was read to find them.

    documents: those kept, in reading order.
    files, bytes_total: of the corpus; the bytes are those on disk, None where that cannot be known.
    files_read, bytes_read, documents_read, characters_read: how much of it was looked at.
    whole: whether that is all of it.
    empty_documents: among those read, that hold nothing but white space; they are left out of `documents_read`.
    failed: records that could not be read; failure: what the first of them raises.
    barren_files: labels of files in which no document was found.
    skipped_files: of folders, that have a suffix which is not read.
    line_documents: whether each line of a text file was a document, and that was not asked for.
    repeats: what was counted of repeated documents while reading.
    """

    documents: list[Sampled]
    files: int
    files_read: int
    bytes_total: int | None
    bytes_read: int
    documents_read: int
    characters_read: int
    whole: bool
    empty_documents: int
    failed: int
    failure: str | None
    barren_files: tuple[str, ...]
    skipped_files: tuple[str, ...]
    line_documents: bool
    repeats: Repeats

    @property
    def share_read(self) -> float | None:
        """Share of the corpus that was read, by bytes on disk; None where its size is not known."""
        if self.whole:
            return 1.0
        return min(1.0, self.bytes_read / self.bytes_total) if self.bytes_total else None

    @property
    def documents_estimate(self) -> int | None:
        """Documents of the whole corpus, if the rest is like what was read; None where its size is not known."""
        share = self.share_read
        return None if share is None else round(self.documents_read / share) if share else 0

    @property
    def characters_estimate(self) -> int:
        """Characters (or ids) of the whole corpus, if the rest is like what was read. Where its size is not known,
        those that were read: it has at least as many.
        """
        share = self.share_read
        return self.characters_read if share is None else round(self.characters_read / share) if share else 0

    @property
    def texts(self) -> list[str]:
        """Of the documents that are text."""
        return [document.text for document in self.documents if document.ids is None]


class Spread:
    """Keeps documents evenly spread over all that come, within bounds on their number and characters.

    Document i has priority i·φ mod 1; the lowest stay, and whenever there are too many the bound on them is halved.
    """

    def __init__(self, max_documents: int = KEEP_DOCUMENTS, max_characters: int = KEEP_CHARACTERS):
        self.max_documents, self.max_characters = max_documents, max_characters
        self.bound, self.seen, self.held_characters = 1 << 64, 0, 0
        self.kept: list[tuple[int, Sampled]] = []

    def add(self, document: Document) -> None:
        """Keep a document, or not."""
        priority = self.seen * _GOLDEN % (1 << 64)
        self.seen += 1
        if priority >= self.bound:
            return
        length = len(document.text) if document.ids is None else len(document.ids)
        ids = None if document.ids is None else document.ids[:LONGEST_KEPT]
        self.kept.append((priority, Sampled(document.text[:LONGEST_KEPT], ids, length, document.source)))
        self.held_characters += min(length, LONGEST_KEPT)
        while len(self.kept) > 1 and (
            len(self.kept) > self.max_documents or self.held_characters > self.max_characters
        ):
            self.bound //= 2
            self.kept = [item for item in self.kept if item[0] < self.bound]
            self.held_characters = sum(min(item.characters, LONGEST_KEPT) for _, item in self.kept)

    @property
    def documents(self) -> list[Sampled]:
        """Those kept, in the order in which they came."""
        return [document for _, document in self.kept]


# -- where to read -----------------------------------------------------------------------------------------------------


def places(sizes: Sequence[int], read_bytes: int, count: int = PLACES) -> list[tuple[int, int, int]]:
    """(file, start, bytes) of ranges spread evenly over the bytes of all files; neighbours that touch are joined.

    >>> places([100, 300], read_bytes=40, count=4)
    [(0, 45, 10), (1, 45, 10), (1, 145, 10), (1, 245, 10)]
    """
    total, span = sum(sizes), max(1, read_bytes // count)
    if total <= read_bytes:
        return [(index, 0, size) for index, size in enumerate(sizes) if size]
    found: list[tuple[int, int, int]] = []
    before, index = 0, 0
    for number in range(count):
        middle = (2 * number + 1) * total // (2 * count)
        while middle >= before + sizes[index]:
            before += sizes[index]
            index += 1
        start = max(0, min(middle - before - span // 2, sizes[index] - span))
        start = 0 if start < span // 2 else start
        size = min(span, sizes[index] - start)
        if found and found[-1][0] == index and found[-1][1] + found[-1][2] >= start:
            start = found[-1][1]
            size = min(sizes[index], middle - before + span // 2) - start
            found.pop()
        found.append((index, start, size))
    return found


def draw_sample(
    paths: Sequence[str | Path],
    *,
    column: str | None = None,
    split_text: SplitText | None = None,
    encoding_errors: EncodingErrors = "strict",
    read_bytes: int = READ_BYTES,
    valid: Sequence[str | Path] = (),
    held_out: Iterable[int] = (),
) -> Sample:
    """Read from all over a corpus, within bounds on bytes, characters, documents and memory.

    - `paths`, `column`, `split_text`, `encoding_errors`: as in `Corpus`.
    - `valid`: held-out files, which are not read where the corpus holds them too, as in a preparation.
    - `held_out`: `document_hash` of documents that should not be here.

    Raises ValueError for paths that cannot be, and for a corpus of which no record can be read: what the first raises.
    """
    options = {"column": column, "split_text": split_text, "encoding_errors": encoding_errors}
    corpus = _opened(paths, valid, options)
    drawing = _Drawing(corpus, Repeats(frozenset(held_out)))
    sizes = [file.num_bytes or 0 for file in corpus.files]
    known = corpus.bytes_total is not None
    ranges = places(sizes, read_bytes) if known else [(index, 0, read_bytes) for index in range(len(sizes))]
    total = sum(size for _, _, size in ranges)
    for number in sorted(range(len(ranges)), key=lambda number: number * _GOLDEN % (1 << 64)):
        index, start, size = ranges[number]
        part = size < sizes[index] or not known
        drawing.take(corpus.files[index], start, size, size / max(1, total), part=part)
    if not drawing.spread.seen:
        named = ", ".join(map(str, paths))
        raise ValueError(
            corpus.failure
            or f"the corpus {named} holds no documents ({drawing.empty:,} empty ones); name files with text or ids"
        )
    return Sample(
        documents=drawing.spread.documents,
        files=len(corpus.files),
        files_read=len(drawing.files),
        bytes_total=corpus.bytes_total,
        bytes_read=drawing.bytes,
        documents_read=drawing.spread.seen,
        characters_read=drawing.characters,
        whole=drawing.whole,
        empty_documents=drawing.empty,
        failed=corpus.failed,
        failure=corpus.failure,
        barren_files=tuple(drawing.barren),
        skipped_files=tuple(map(str, corpus.skipped_files)),
        line_documents=split_text is None
        and any(suffixes(corpus.files[index].label)[0] in ("", ".txt", ".text") for index, _, _ in ranges),
        repeats=drawing.repeats,
    )


def _opened(paths: Sequence[str | Path], valid: Sequence[str | Path], options: Mapping[str, Any]) -> Tolerant:
    """The files that a preparation would read."""
    corpora = {"train": Tolerant(paths, **options)} | ({"valid": Tolerant(valid, **options)} if valid else {})
    return each_file_in_one_place(corpora)["train"]


class _Drawing:
    """The books of `draw_sample`."""

    def __init__(self, corpus: Tolerant, repeats: Repeats):
        self.corpus, self.repeats, self.spread = corpus, repeats, Spread()
        self.empty = self.characters = self.bytes = 0
        self.whole = True  # so far
        self.barren: list[str] = []
        self.files: set[str] = set()
        self.deadline = corpus.deadline = time.monotonic() + READ_SECONDS

    def take(self, file: CorpusFile, start: int, size: int, share: float, *, part: bool) -> None:
        """Read a range of a file, and of all that may be read at most the share that is its due."""
        if self.files and time.monotonic() > self.deadline:
            self.whole = False
            return
        self.files.add(file.label)
        from_middle = part and _is_plain_lines(file, self.corpus.split_text)
        begun, documents, characters = self.corpus.bytes_done, 0, 0
        stream = self.corpus.read_range(file, start, size) if from_middle else self.corpus.read(file)
        ended = True
        for document in stream:
            length = len(document.text) if document.ids is None else len(document.ids)
            if not length or (document.ids is None and document.text.isspace()):
                self.empty += 1
                continue
            self.spread.add(document)
            self.repeats.add(document)
            documents, characters = documents + 1, characters + length
            beyond = part and not from_middle and self.corpus.bytes_done - begun >= size
            beyond = beyond or (documents % 256 == 0 and time.monotonic() > self.deadline)
            if beyond or characters > share * READ_CHARACTERS or documents > share * READ_DOCUMENTS + 1000:
                ended = False
                break
        self.whole = self.whole and ended and not from_middle and not self.corpus.given_up
        self.bytes += size if from_middle and ended else max(0, self.corpus.bytes_done - begun)
        self.characters += characters
        if not documents and not from_middle:
            self.barren.append(file.label)


def _is_plain_lines(file: CorpusFile, split_text: SplitText | None) -> bool:
    """Whether reading may begin at any line of a file."""
    if file.path is None or file.num_bytes is None or not reads_single_lines(suffixes(file.label)[0], split_text):
        return False
    with file.path.open("rb") as raw:
        head = raw.read(8)
    return compression_of(head) is None and not head.startswith(tuple(MAGIC))


def count_repeats(
    paths: Sequence[str | Path],
    seconds: float,
    *,
    column: str | None = None,
    split_text: SplitText | None = None,
    valid: Sequence[str | Path] = (),
    held_out: Iterable[int] = (),
) -> tuple[Repeats, float | None]:
    """Go through a corpus from its beginning for so many seconds; returns what repeats, and the share that was read:
    None where that cannot be known.

    A sample of a large corpus holds few of the copies: two that lie far apart are hardly ever both in it.
    """
    corpus = _opened(paths, valid, {"column": column, "split_text": split_text, "encoding_errors": "replace"})
    repeats = Repeats(frozenset(held_out))
    corpus.deadline = time.monotonic() + seconds
    for document in chain.from_iterable(map(corpus.read, corpus.files)):
        repeats.add(document)
        if repeats.documents % 256 == 0 and time.monotonic() > corpus.deadline:
            corpus.given_up = True
            break
    if not corpus.given_up:
        return repeats, 1.0
    return repeats, min(1.0, corpus.bytes_done / corpus.bytes_total) if corpus.bytes_total else None


# -- other things to draw from -----------------------------------------------------------------------------------------


def merge_samples(samples: Sequence[Sample], weights: Sequence[float]) -> Sample:
    """The sample of a mixture: as many documents of each part as its weight asks for, where the part has them."""
    shares = [weight / sum(weights) for weight in weights]
    size = max(len(sample.documents) / share for sample, share in zip(samples, shares, strict=True))
    size = min(size, KEEP_DOCUMENTS)
    documents: list[Sampled] = []
    for sample, share in zip(samples, shares, strict=True):
        step = max(1.0, len(sample.documents) / max(1.0, size * share))
        documents += [sample.documents[int(i * step)] for i in range(int(len(sample.documents) / step))]
    repeats = Repeats(frozenset().union(*(sample.repeats.held_out for sample in samples)))
    repeats.modulus = max(sample.repeats.modulus for sample in samples)
    for sample in samples:
        repeats.documents += sample.repeats.documents
        repeats.found |= sample.repeats.found
        for key, count in sample.repeats.counts.items():
            if key % repeats.modulus == 0:
                repeats.counts[key] += count
    totals = [sample.bytes_total for sample in samples]
    return Sample(
        documents=documents,
        bytes_total=None if None in totals else sum(total for total in totals if total is not None),
        whole=all(sample.whole for sample in samples),
        failure=next((sample.failure for sample in samples if sample.failure), None),
        barren_files=tuple(label for sample in samples for label in sample.barren_files),
        skipped_files=tuple(path for sample in samples for path in sample.skipped_files),
        line_documents=any(sample.line_documents for sample in samples),
        repeats=repeats,
        **{
            name: sum(getattr(sample, name) for sample in samples)
            for name in (
                "files", "files_read", "bytes_read", "documents_read", "characters_read", "empty_documents", "failed",
            )
        },
    )  # fmt: skip


def sample_store(store: TokenStore, count: int = 5_000) -> list[Sampled]:
    """Pieces of a prepared store, evenly over all of it."""
    chosen = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64)).tolist()
    pieces = [store.piece(index).astype(np.int64) for index in chosen]
    return [Sampled("", ids, len(ids), None) for ids in pieces]
