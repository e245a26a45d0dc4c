"""Files -> documents.

    find_files: paths, folders, globs, "-"  ->  CorpusFile...        (what to read, in a fixed order)
    Corpus:     CorpusFile...               ->  Document...          (streaming; counts bytes, empty and skipped)

The road of one file: bytes -> decompressed bytes -> lines or record batches -> documents. Every stage holds at most one
megabyte, one line or one record batch at a time, so memory is bounded by the longest document. A file is never silently
cut or skipped: whatever cannot be read raises a `ValueError` of one line that names the file and the place.
"""

import errno
import glob
import io
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlm_pytorch.data.lines import (
    CHUNK_BYTES,
    COMPRESSION_SUFFIXES,
    Counted,
    Decompressed,
    EncodingErrors,
    Lines,
    compression_of,
    describe_head,
    open_input,
)

SplitText = Literal["line", "paragraph", "file"]

TEXT_COLUMNS = ("text", "sequence", "content")
TEXT_SUFFIXES = frozenset({".txt", ".text"})
# Of these, one file is one document: their lines mean little alone. Folders are searched for the first four only.
PROSE_SUFFIXES = frozenset({".md", ".rst"})
# fmt: off
CODE_SUFFIXES = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cs", ".cu", ".go", ".hs", ".java", ".jl", ".js", ".jsx",
    ".kt", ".lua", ".m", ".pl", ".php", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".tex", ".ts", ".tsx",
})
# fmt: on
JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
# Read as lines these would train on commas, headers or rubbish without a word.
# fmt: off
OTHER_SUFFIXES = frozenset({
    ".csv", ".tsv", ".arrow", ".feather", ".fasta", ".fa", ".fastq", ".fq", ".npy", ".npz", ".h5", ".pt", ".bin",
    ".zip", ".tar", ".tgz", ".7z", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".epub",
})
# fmt: on
FOLDER_SUFFIXES = TEXT_SUFFIXES | PROSE_SUFFIXES | JSON_SUFFIXES | PARQUET_SUFFIXES | {".py"}

PARQUET_MAGIC = b"PAR1"

RECORD_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Document:
    """One text, as the file has it (line ends are line feeds; nothing is stripped), or one sequence of ids."""

    text: str  # "" where there are ids
    source: str | None  # the record's "source" field if there is one, else the file's name
    ids: np.ndarray | None = None  # (length,) int64, never negative: a sequence that is token ids already


@dataclass(frozen=True)
class CorpusFile:
    """One input in reading order. `path` None is standard input."""

    path: Path | None
    label: str  # how messages name it
    source: str  # what its documents name as their source
    num_bytes: int | None  # on disk, compressed; None where it cannot be known (pipes)

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return self.num_bytes is None


def documents(
    paths: Sequence[str | Path],
    *,
    column: str | None = None,
    split_text: SplitText | None = None,
    encoding_errors: EncodingErrors = "strict",
) -> Iterator[Document]:
    """Stream the documents of files, folders, globs and standard input ("-"). See `Corpus` for what the options mean.

    >>> [document.text for document in documents(["novel.txt"], split_text="paragraph")]
    ["It was a dark and stormy night.", "The rain fell."]
    """
    return iter(Corpus(paths, column=column, split_text=split_text, encoding_errors=encoding_errors))


class Corpus:
    """The documents of some paths: iterate over it, again if you like, and ask how far it has come.

    - `paths`: files, folders (walked in sorted order, hidden entries left out, known suffixes taken), globs (`**` goes
      deep), "-" for standard input. Plain or gzip, zstd, bzip2, xz.
    - `column`: the field of JSON lines and Parquet that holds the text; None takes the one there is of `TEXT_COLUMNS`.
    - `split_text`: what a document is in a text file: a "line", a "paragraph" (ended by blank lines) or the whole
      "file". None: a line, but the whole file for source code, Markdown and reStructuredText.
    - `encoding_errors`: "strict" raises at bytes that are not UTF-8; "replace" puts U+FFFD in their place.

    While iterating, `bytes_done` grows to `bytes_total` (compressed bytes; None when an input is a pipe), and
    `empty_documents` counts what was left out because it held nothing but white space.

    Raises ValueError for all that is wrong with the paths (here) or the files (while iterating), naming file and line.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        column: str | None = None,
        split_text: SplitText | None = None,
        encoding_errors: EncodingErrors = "strict",
    ):
        if split_text not in (None, "line", "paragraph", "file"):
            raise ValueError(f"split_text {split_text!r} is unknown; choose line, paragraph or file")
        if encoding_errors not in ("strict", "replace"):
            raise ValueError(f"encoding_errors {encoding_errors!r} is unknown; choose strict or replace")
        self.column = column
        self.split_text: SplitText | None = split_text
        self.encoding_errors: EncodingErrors = encoding_errors
        self.files, self.skipped_files = find_files(paths)
        self.bytes_done = 0
        self.empty_documents = 0

    @property
    def bytes_total(self) -> int | None:
        """Compressed bytes of all files; None when one of them is a pipe."""
        sizes = [file.num_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def __iter__(self) -> Iterator[Document]:
        self.bytes_done = self.empty_documents = 0
        for file in self.files:
            for document in self._read(file):
                # isspace() stops at the first other character; "" is not space to Python
                if document.text and not document.text.isspace():
                    yield document
                else:
                    self.empty_documents += 1

    def spool(self, folder: Path) -> None:
        """Copy the inputs that can be read only once into `folder`, so that the corpus can be read again."""
        for index, file in enumerate(self.files):
            if file.is_stream:
                copy = folder / f"input-{index:05d}"
                with open_input(file.path, file.label) as raw, copy.open("wb") as out:
                    while chunk := raw.read(CHUNK_BYTES):
                        out.write(chunk)
                self.files[index] = replace(file, path=copy, num_bytes=copy.stat().st_size)

    # -- one file ------------------------------------------------------------------------------------------------------

    def _read(self, file: CorpusFile) -> Iterator[Document]:
        """One file's documents, by what its first bytes and its name say it is."""
        suffix, compression_suffix = _suffixes(file.label)
        if suffix in OTHER_SUFFIXES:
            raise ValueError(
                f"{file.label} has a format that is not read ({suffix}); convert it to .jsonl, .parquet or .txt (or "
                "pipe it in as -, to take every line as a document)"
            )
        with open_input(file.path, file.label) as raw:
            counted = Counted(raw, self._count)
            if counted.head.startswith(PARQUET_MAGIC):
                yield from self._read_parquet(file)
                return
            compression = compression_of(counted.head)
            if compression is None and compression_suffix is not None:
                name = COMPRESSION_SUFFIXES[compression_suffix]
                raise ValueError(
                    f"{file.label} is not {name} (it {describe_head(counted.head)}); rename it or write it again"
                )
            if suffix in PARQUET_SUFFIXES and compression is None:
                raise ValueError(
                    f"{file.label} is not Parquet (it {describe_head(counted.head)}); rename it or write it again"
                )
            plain = counted if compression is None else Decompressed(counted, compression, file.label)
            lines = Lines(io.BufferedReader(plain, CHUNK_BYTES), file.label, self.encoding_errors)
            if suffix in JSON_SUFFIXES or (suffix not in FOLDER_SUFFIXES | CODE_SUFFIXES and lines.look_like_json()):
                yield from self._read_json_lines(file, lines)
            else:
                whole_file = suffix in PROSE_SUFFIXES | CODE_SUFFIXES
                split = self.split_text or ("file" if whole_file else "line")
                for text in _SPLITTERS[split](lines):
                    yield Document(text, file.source)

    def _count(self, num_bytes: int) -> None:
        self.bytes_done += num_bytes

    def _read_json_lines(self, file: CorpusFile, lines: Lines) -> Iterator[Document]:
        column = self.column
        for line in lines:
            if not line or line.isspace():
                continue
            where = f"{file.label} line {lines.number}"
            try:
                record = json.loads(line)
            except RecursionError:
                raise ValueError(f"{where} is nested too deeply to be read; remove or simplify the line") from None
            except ValueError as error:  # JSONDecodeError, and the limit on the digits of an integer
                remedy = "a JSON array or an indented object must be rewritten as one object per line"
                raise ValueError(f"{where} is not JSON ({error}); {remedy}") from None
            if not isinstance(record, dict):
                raise ValueError(
                    f'{where} is a JSON {_json_type(record)}; write one object per line, as {{"text": "…"}}'
                )
            if column is None:
                column = _find_column(list(record), where)
            if column not in record:
                raise ValueError(
                    f"{where} has no {column!r}, only {_listed(record)}; name the text with --column or repair the line"
                )
            text, source = record[column], record.get("source")
            if text is None:  # null is how many tools write an absent text
                text = ""
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: {column!r} is a JSON {_json_type(text)}, not a string; name another with --column"
                )
            # An escape such as \ud800 is legal JSON but no Unicode text.
            if "\\ud" in line or "\\uD" in line:
                text = self._without_surrogates(text, where)
                source = self._without_surrogates(source, where) if isinstance(source, str) else None
            yield Document(text, source if isinstance(source, str) else file.source)

    def _without_surrogates(self, text: str, where: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.encoding_errors == "strict":
                surrogate = f"\\u{ord(text[error.start]):04x}"
                raise ValueError(
                    f"{where} holds half a character ({surrogate}); repair it or pass --encoding-errors replace"
                ) from None
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text

    def _read_parquet(self, file: CorpusFile) -> Iterator[Document]:
        import pyarrow as pa  # a quarter of a second that other formats need not pay
        import pyarrow.parquet as pq

        if file.is_stream:
            raise ValueError(f"{file.label} is Parquet, which cannot be read from a pipe; save it to a file first")
        assert file.path is not None
        assert file.num_bytes is not None
        done_before, row = self.bytes_done, 0
        try:
            # Without buffer_size a whole column chunk is held, which is the whole file when it has one row group.
            with pq.ParquetFile(file.path, buffer_size=CHUNK_BYTES, pre_buffer=False) as parquet:
                names = parquet.schema_arrow.names
                column = self.column or _find_column(names, file.label)
                if column not in names:
                    raise ValueError(
                        f"{file.label} has no column {column!r}, only {_listed(names)}; name one of them with --column"
                    )
                kind = parquet.schema_arrow.field(column).type
                if not _is_text(pa, kind):
                    raise ValueError(
                        f"{file.label}: column {column!r} holds {kind}, not text; of {_listed(names)} name another "
                        "with --column"
                    )
                with_source = "source" in names and _is_text(pa, parquet.schema_arrow.field("source").type)
                columns = [column, "source"] if with_source and column != "source" else [column]
                for batch in parquet.iter_batches(batch_size=RECORD_BATCH_ROWS, columns=columns):
                    texts = self._strings(batch.column(column), file, row)
                    sources = self._strings(batch.column("source"), file, row) if with_source else ()
                    for text, source in itertools.zip_longest(texts, sources):
                        yield Document(text or "", source or file.source)
                    row += batch.num_rows
                    self.bytes_done = done_before + file.num_bytes * row // max(parquet.metadata.num_rows, 1)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EIO:
                raise
            reason = " ".join(str(error).split())
            raise ValueError(f"{file.label} is damaged Parquet after row {row} ({reason}); write it again") from None
        self.bytes_done = done_before + file.num_bytes

    def _strings(self, column: Any, file: CorpusFile, first_row: int) -> list[str | None]:
        """One record batch's texts; Arrow does not promise that a string column holds UTF-8."""
        import pyarrow as pa

        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                return column.to_pylist()
        except UnicodeDecodeError:
            column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
        values = column.to_pylist()
        for index, value in enumerate(values):
            if isinstance(value, bytes):
                try:
                    values[index] = value.decode("utf-8", self.encoding_errors)
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{file.label} row {first_row + index + 1}: byte 0x{value[error.start]:02x} at offset "
                        f"{error.start} of the text is not UTF-8; repair it or pass --encoding-errors replace"
                    ) from None
        return values


# -- which files -------------------------------------------------------------------------------------------------------


def find_files(paths: Sequence[str | Path]) -> tuple[list[CorpusFile], list[Path]]:
    """Resolve paths, folders, globs and "-" into files, in the order given and sorted within each.

    Returns them and the files that were left out of folders because their suffix is not known. Raises ValueError when a
    path does not exist, a glob matches nothing, a folder holds no known file, or nothing was named at all.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise ValueError("no corpus was named; give at least one file, folder, glob, or - for standard input")
    files: list[CorpusFile] = []
    skipped: list[Path] = []
    for given in map(str, paths):
        if given == "-":
            files.append(CorpusFile(None, "standard input", "stdin", None))
            continue
        path = Path(given).expanduser()
        if path.exists():
            matches = [path]
        elif glob.has_magic(given):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
            if "**" in given:  # whose folders were entered already
                matches = [match for match in matches if not match.is_dir()]
            if not matches:
                raise ValueError(
                    f"{given} matches no file; check the pattern, and quote it so that the shell leaves it alone"
                )
        else:
            raise ValueError(f"{given} does not exist; check the path of the corpus")
        for match in matches:
            if match.is_dir():
                found, unknown = _walk(match)
                files += map(_corpus_file, found)
                skipped += unknown
            else:
                files.append(_corpus_file(match))
    return files, skipped


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files below a folder in sorted order: those with a known suffix, and the others."""
    if (folder / "manifest.json").exists() and any(folder.glob("*.arrow")):
        raise ValueError(
            f"{folder} is a prepared store, not a corpus of files; give the store alone, or the files it came from"
        )
    known: list[Path] = []
    unknown: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                (known if _suffixes(name)[0] in FOLDER_SUFFIXES else unknown).append(path)
    if not known:
        others = sorted({path.suffix or path.name for path in unknown})
        held = f"only {_listed(others)}" if others else "no files at all"
        raise ValueError(
            f"{folder} holds {held}; a folder is searched for {' '.join(sorted(FOLDER_SUFFIXES))} (also compressed): "
            f"name other files by a glob such as '{folder}/**/*{others[0] if others else '.txt'}'"
        )
    return known, unknown


def _corpus_file(path: Path) -> CorpusFile:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    # A file name is bytes; what is no Unicode in it must not stop a message or a store from being written.
    label, source = (os.fsencode(name).decode("utf-8", "replace") for name in (path, path.name))
    return CorpusFile(path, label, source, status.st_size if stat.S_ISREG(status.st_mode) else None)


def _suffixes(name: str) -> tuple[str, str | None]:
    """("corpus.jsonl.gz") -> (".jsonl", ".gz"); the second is None for what is not compressed."""
    path = Path(name.lower())
    if path.suffix in COMPRESSION_SUFFIXES:
        return path.with_suffix("").suffix, path.suffix
    return path.suffix, None


# -- documents in a text file ------------------------------------------------------------------------------------------


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    for line in lines:
        if line and not line.isspace():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _whole_file(lines: Iterable[str]) -> Iterator[str]:
    yield "\n".join(lines)


_SPLITTERS: dict[str, Callable[[Iterable[str]], Iterator[str]]] = {
    "line": iter,
    "paragraph": _paragraphs,
    "file": _whole_file,
}


# -- words for messages ------------------------------------------------------------------------------------------------


def _find_column(names: Sequence[str], where: str) -> str:
    """The one of TEXT_COLUMNS that there is."""
    found = [name for name in TEXT_COLUMNS if name in names]
    if len(found) == 1:
        return found[0]
    trouble = f"could mean any of {_listed(found)}" if found else f"has none of {_listed(TEXT_COLUMNS)}"
    raise ValueError(
        f"{where} {trouble}; its columns are {_listed(names)}: name the one that holds the text with --column"
    )


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or kind == pa.string_view()


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", str: "string"}
    return names.get(type(value), "null")


def _listed(names: Iterable[str], limit: int = 12) -> str:
    """At most `limit` names, quoted by repr so that whatever a file calls its columns stays on one line."""
    shown = [repr(name) for name in itertools.islice(names, limit + 1)]
    return ", ".join(shown[:limit]) + (", …" if len(shown) > limit else "") if shown else "nothing"
