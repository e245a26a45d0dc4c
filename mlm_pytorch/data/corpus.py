"""Files -> documents.

    find_files: paths, folders, globs, URLs, "-"  ->  CorpusFile...   (`files`: what to read, in a fixed order)
    Corpus:     CorpusFile...                     ->  Document...     (streaming; counts bytes, empty and skipped)

The road of one file: bytes -> decompressed bytes -> lines, objects or record batches -> documents. `formats` has a
module per family of formats. Every stage holds at most one megabyte, one line or one record batch at a time, so memory
is bounded by the longest document. A file is never silently cut or skipped: whatever cannot be read raises a
`ValueError` of one line that names the file and the place.
"""

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

from mlm_pytorch.data.files import (
    CODE_SUFFIXES,
    FORMAT_OF_SUFFIX,
    HUB,
    OTHER_SUFFIXES,
    PROSE_SUFFIXES,
    CorpusFile,
    find_files,
    suffixes,
)
from mlm_pytorch.data.formats.columns import read_arrow, read_hub, read_parquet
from mlm_pytorch.data.formats.csv_records import read_csv
from mlm_pytorch.data.formats.fasta import read_fasta, read_fastq
from mlm_pytorch.data.formats.json_records import read_json, read_json_lines
from mlm_pytorch.data.formats.npy import read_npy
from mlm_pytorch.data.formats.record import Document, Reading
from mlm_pytorch.data.formats.text import SplitText, read_text
from mlm_pytorch.data.lines import (
    CHUNK_BYTES,
    COMPRESSION_SUFFIXES,
    Counted,
    Decompressed,
    EncodingErrors,
    Lines,
    compression_of,
    describe_head,
)

__all__ = ["Corpus", "CorpusFile", "Document", "DocumentStream", "EncodingErrors", "SplitText", "documents"]

# No text begins like these, so the bytes decide, not the name. An Arrow stream begins with the mark of a message.
MAGIC = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow", b"\x93NUMPY": "NPY"}
SEEKING = ("Parquet", "Arrow")


class DocumentStream(Protocol):
    """What a preparation reads: a `Corpus`, or a `Mixture` of several."""

    @property
    def files(self) -> Sequence[CorpusFile]:
        """Those that it reads."""
        ...

    @property
    def skipped_files(self) -> Sequence[Path]:
        """Those of folders that it does not, by their suffix."""
        ...

    @property
    def bytes_done(self) -> int:
        """While iterating, up to `bytes_total`."""
        ...

    @property
    def empty_documents(self) -> int:
        """Left out so far."""
        ...

    @property
    def begins_again(self) -> bool:
        """Whether one iteration may read its inputs more than once."""
        ...

    @property
    def identity(self) -> Any:
        """All that decides about the documents, as JSON has it; None where they cannot be read again, or be known."""
        ...

    @property
    def bytes_total(self) -> int | None:
        """Compressed bytes of all files; None where that cannot be known."""
        ...

    def __iter__(self) -> Iterator[Document]:
        """The documents, from the beginning."""
        ...

    def spool(self, folder: Path) -> None:
        """Copy the inputs that can be read only once into `folder`, so that all can be read again."""
        ...


def documents(
    paths: Sequence[str | Path],
    *,
    column: str | None = None,
    split_text: SplitText | None = None,
    encoding_errors: EncodingErrors = "strict",
    num_tokens: int | None = None,
) -> Iterator[Document]:
    """Stream the documents of files, folders, globs, URLs and standard input ("-"). See `Corpus` for the options.

    >>> [document.text for document in documents(["novel.txt"], split_text="paragraph")]
    ["It was a dark and stormy night.", "The rain fell."]
    """
    options = {"column": column, "split_text": split_text, "encoding_errors": encoding_errors}
    return iter(Corpus(paths, **options, num_tokens=num_tokens))


class Corpus:
    """The documents of some paths: iterate over it, again if you like, and ask how far it has come.

    - `paths`: files, folders (walked in sorted order, hidden entries left out, known suffixes taken), globs (`**` goes
      deep), "-" for standard input (lines of text, JSON lines, FASTA or FASTQ), folders that `datasets` has saved, URLs
      of anything that fsspec reads (hf://, s3://, …; globs and folders too), and hub:NAME[:CONFIG[:SPLIT]] for data
      sets of the Hub. Plain or gzip, zstd, bzip2, xz. Only a URL or a hub: name makes anything go to the network.
    - `column`: the field that holds the text, or the ids as a list of integers; None takes the one there is of text,
      sequence, content and input_ids.
    - `split_text`: what a document is in a text file: a "line", a "paragraph" (ended by blank lines) or the whole
      "file". None: a line, but the whole file for source code, Markdown and reStructuredText.
    - `encoding_errors`: "strict" raises at bytes that are not UTF-8; "replace" puts U+FFFD in their place.
    - `num_tokens`: what every id must be less than, where the documents are ids.

    While iterating, `bytes_done` grows to `bytes_total` (compressed bytes; None when an input is a pipe), and
    `empty_documents` counts what was left out because it held nothing but white space, or no id.

    Raises ValueError for all that is wrong with the paths (here) or the files (while iterating), naming file and line.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        column: str | None = None,
        split_text: SplitText | None = None,
        encoding_errors: EncodingErrors = "strict",
        num_tokens: int | None = None,
    ):
        if split_text not in (None, "line", "paragraph", "file"):
            raise ValueError(f"split_text {split_text!r} is unknown; choose line, paragraph or file")
        if encoding_errors not in ("strict", "replace"):
            raise ValueError(f"encoding_errors {encoding_errors!r} is unknown; choose strict or replace")
        if num_tokens is not None and num_tokens < 1:
            raise ValueError(f"num_tokens {num_tokens} leaves no ids; it is the size of the vocabulary")
        self.split_text: SplitText | None = split_text
        self.reading = Reading("", "", column, encoding_errors, num_tokens)
        self.files, self.skipped_files = find_files(paths)
        self.begins_again = False
        self.bytes_done = 0
        self.empty_documents = 0

    @property
    def bytes_total(self) -> int | None:
        """Compressed bytes of all files; None when one of them is a pipe, or a data set of the Hub."""
        sizes = [file.num_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def identity(self) -> Any:
        """The options, and every file's place, size and time of change; None for pipes, and for what lies elsewhere."""
        if any(file.is_stream or file.url is not None for file in self.files):
            return None
        paths = [file.path.absolute() for file in self.files if file.path is not None]
        return [
            {"split_text": self.split_text, **asdict(replace(self.reading, num_tokens=None))},  # which only checks
            [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths],
        ]

    def __iter__(self) -> Iterator[Document]:
        self.bytes_done = self.empty_documents = 0
        for file in self.files:
            for document in self._read(file):
                # isspace() stops at the first other character; "" is not space to Python
                if (document.text and not document.text.isspace()) or (document.ids is not None and len(document.ids)):
                    yield document
                else:
                    self.empty_documents += 1

    def of_files(self, files: Sequence[CorpusFile]) -> Self:
        """The same reading of these files alone."""
        chosen = copy.copy(self)
        chosen.files = list(files)
        return chosen

    def spool(self, folder: Path) -> None:
        """Copy the inputs that can be read only once into `folder`, so that the corpus can be read again."""
        for index, file in enumerate(self.files):
            if file.is_stream:
                copy = folder / f"input-{index:05d}"
                with file.open() as raw, copy.open("wb") as out:
                    while chunk := raw.read(CHUNK_BYTES):
                        out.write(chunk)
                self.files[index] = replace(file, path=copy, num_bytes=copy.stat().st_size)

    # -- one file ------------------------------------------------------------------------------------------------------

    def _read(self, file: CorpusFile) -> Iterator[Document]:
        """One file's documents, by what its first bytes and its name say it is."""
        reading = replace(self.reading, label=file.label, source=file.source)
        if file.url is not None and file.url.startswith(HUB):
            yield from read_hub(file.url.removeprefix(HUB), reading)
            return
        suffix, compression_suffix = suffixes(file.label)
        if suffix in OTHER_SUFFIXES:
            raise ValueError(
                f"{file.label} has a format that is not read ({suffix}); convert it to .jsonl, .parquet or .txt (or "
                "pipe it in as -, to take every line as a document)"
            )
        named = FORMAT_OF_SUFFIX.get(suffix)
        with file.open() as raw:
            counted = Counted(raw, self._count)
            found = _by_magic(counted.head)
            if found in SEEKING:
                yield from self._read_seeking(file, found, raw, reading)
                return
            plain = _decompressed(counted, compression_suffix, file.label)
            if named in SEEKING:
                trouble = f"it {describe_head(counted.head)}" if plain is counted else "it is compressed as a whole"
                raise ValueError(f"{file.label} is not {named} ({trouble}); rename, decompress or write it again")
            reader: io.BufferedReader = io.BufferedReader(plain, CHUNK_BYTES)
            if found == "NPY" or named == "NPY":
                yield from read_npy(reader, reading)
            elif named == "JSON":
                yield from read_json(reader, reading)
            else:
                yield from self._read_lines(Lines(reader, file.label, reading.encoding_errors), suffix, reading)

    def _read_lines(self, lines: Lines, suffix: str, reading: Reading) -> Iterator[Document]:
        """The documents of a format that is lines of text."""
        known = FORMAT_OF_SUFFIX.get(suffix)
        whole_file = suffix in PROSE_SUFFIXES | CODE_SUFFIXES
        if known is None and not whole_file:
            known = lines.look()
        if known == "CSV" or known == "TSV":
            return read_csv(lines, "," if known == "CSV" else "\t", reading)
        if known == "FASTA":
            return read_fasta(lines, reading)
        if known == "FASTQ":
            return read_fastq(lines, reading)
        if known == "JSON lines":
            return read_json_lines(lines, reading)
        return read_text(lines, self.split_text or ("file" if whole_file else "line"), reading)

    def _read_seeking(self, file: CorpusFile, kind: str, raw: IO[bytes], reading: Reading) -> Iterator[Document]:
        """The documents of a format that is read from several places of the file."""
        if file.is_stream or not raw.seekable():
            raise ValueError(f"{file.label} is {kind}, which cannot be read from a pipe; save it to a file first")
        before, size = self.bytes_done, file.num_bytes or 0

        def progress(share: float) -> None:
            self.bytes_done = before + int(size * share)

        raw.seek(0)
        return (read_parquet if kind == "Parquet" else read_arrow)(file.path or raw, reading, progress)

    def _count(self, num_bytes: int) -> None:
        self.bytes_done += num_bytes


def _by_magic(head: bytes) -> str | None:
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def _decompressed(counted: Counted, suffix: str | None, label: str) -> io.RawIOBase:
    """What a file holds, decompressed if its first bytes say so; ValueError if only its name does."""
    compression = compression_of(counted.head)
    if compression is not None:
        return Decompressed(counted, compression, label)
    if suffix is not None:
        raise ValueError(
            f"{label} is not {COMPRESSION_SUFFIXES[suffix]} (it {describe_head(counted.head)}); rename it or write it "
            "again"
        )
    return counted
