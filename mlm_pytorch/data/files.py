"""Paths, folders, globs, "-", URLs and hub:NAME -> `CorpusFile`s, in a fixed order.

What a name's suffix says of a file stands here too; `corpus` has the last word, since it sees the first bytes.
"""

import glob
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mlm_pytorch.data.formats.record import listed
from mlm_pytorch.data.lines import COMPRESSION_SUFFIXES, open_input

HUB = "hub:"

# fmt: off
FORMAT_OF_SUFFIX = {
    ".txt": "text", ".text": "text",
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON",
    ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".npy": "NPY",
    ".fasta": "FASTA", ".fa": "FASTA", ".fna": "FASTA", ".faa": "FASTA", ".ffn": "FASTA", ".frn": "FASTA",
    ".fas": "FASTA", ".fsa": "FASTA", ".mfa": "FASTA", ".afa": "FASTA", ".pep": "FASTA",
    ".a2m": "FASTA", ".a3m": "FASTA",
    ".fastq": "FASTQ", ".fq": "FASTQ",
}
# Of these, one file is one document: their lines mean little alone. Of code, folders are searched for .py only.
PROSE_SUFFIXES = frozenset({".md", ".rst"})
CODE_SUFFIXES = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cs", ".cu", ".go", ".hs", ".java", ".jl", ".js", ".jsx",
    ".kt", ".lua", ".m", ".pl", ".php", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".tex", ".ts", ".tsx",
})
# Read as lines these would train on rubbish without a word.
OTHER_SUFFIXES = frozenset({
    ".npz", ".h5", ".h5ad", ".pt", ".bin", ".pkl", ".pickle", ".orc", ".avro", ".bam", ".sam", ".vcf",
    ".warc", ".wet", ".wat", ".xml", ".html", ".htm",
    ".zip", ".tar", ".tgz", ".7z", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".epub",
})
# fmt: on
FOLDER_SUFFIXES = frozenset(FORMAT_OF_SUFFIX) | PROSE_SUFFIXES | {".py"}

# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
SAVED_STATE, SAVED_INFO, SAVED_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


@dataclass(frozen=True)
class CorpusFile:
    """One input in reading order. `path` None and `url` None is standard input."""

    path: Path | None
    label: str  # how messages name it
    source: str  # what its documents name as their source
    num_bytes: int | None  # on disk, compressed; None where it cannot be known (pipes)
    url: str | None = None  # of a file elsewhere, or hub:NAME

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return self.num_bytes is None and self.url is None

    def open(self) -> BinaryIO:
        """Its bytes, unbuffered; ValueError where they cannot be had."""
        if self.url is None:
            return open_input(self.path, self.label)
        from mlm_pytorch.data.remote import open_url

        return open_url(self.url, self.label)

    @property
    def place(self) -> str | None:
        """What two names of one file have in common; None of what can be read only once."""
        if self.url is None:
            return None if self.path is None or self.is_stream else os.path.realpath(self.path)
        if self.url.startswith(HUB) or "::" in self.url:  # what is inside an archive is named by the whole chain
            return self.url
        import fsspec

        system, path = fsspec.core.url_to_fs(self.url)
        here = "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
        return os.path.realpath(path) if here else str(system.unstrip_protocol(path))


def find_files(paths: Sequence[str | Path]) -> tuple[list[CorpusFile], list[Path]]:
    """Resolve paths, folders, globs, "-", URLs and hub:NAME into files, in the order given and sorted within each.

    Returns them and the files that were left out of folders because their suffix is not known. A folder that `datasets`
    has saved is its shards; of several splits, the one called "train". Links in folders are followed. Raises ValueError
    when a path does not exist, a glob matches nothing, a folder holds no known file, or nothing was named at all.
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
        elif given.startswith(HUB):
            files.append(CorpusFile(None, given, given.removeprefix(HUB), None, given))
        elif "://" in given:
            from mlm_pytorch.data.remote import find_remote

            found, unknown = find_remote(given)
            files += found
            skipped += unknown
        else:
            for match in _matches(given):
                if match.is_dir():
                    known, unknown = walk(str(match), _Folders().look_into, _read_small)
                    files += [_corpus_file(Path(path)) for path in known]
                    skipped += map(Path, unknown)
                else:
                    files.append(_corpus_file(match))
    return files, skipped


def _matches(given: str) -> list[Path]:
    """The files and folders that a path or glob names."""
    path = Path(given).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(given):
        raise ValueError(f"{given} does not exist; check the path of the corpus")
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
    if "**" in given:  # whose folders were entered already
        matches = [match for match in matches if not match.is_dir()]
    if not matches:
        raise ValueError(f"{given} matches no file; check the pattern, and quote it so that the shell leaves it alone")
    return matches


def _corpus_file(path: Path) -> CorpusFile:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    # A file name is bytes; what is no Unicode in it must not stop a message or a store from being written.
    label, source = (os.fsencode(name).decode("utf-8", "replace") for name in (path, path.name))
    return CorpusFile(path, label, source, status.st_size if stat.S_ISREG(status.st_mode) else None)


def suffixes(name: str) -> tuple[str, str | None]:
    """("corpus.jsonl.gz") -> (".jsonl", ".gz"); the second is None for what is not compressed."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSION_SUFFIXES:
        return path.with_suffix("").suffix, path.suffix
    return path.suffix, None


# -- folders, here or elsewhere ----------------------------------------------------------------------------------------

ListFolder = Callable[[str], tuple[list[str], list[str]]]  # path -> names of its folders, and of its files
ReadSmall = Callable[[str], bytes]


def walk(folder: str, list_folder: ListFolder, read: ReadSmall) -> tuple[list[str], list[str]]:
    """All files below a folder in sorted order: those with a known suffix, and the others."""
    known: list[str] = []
    unknown: list[str] = []
    for path, is_known in _walk(folder, list_folder, read):
        (known if is_known else unknown).append(path)
    if not known:
        others = sorted({PurePosixPath(path).suffix or PurePosixPath(path).name for path in unknown})
        held = f"only {listed(others)}" if others else "no files at all"
        raise ValueError(
            f"{folder} holds {held}; a folder is searched for {' '.join(sorted(FOLDER_SUFFIXES))} (also compressed): "
            f"name other files by a glob such as '{folder}/**/*{others[0] if others else '.txt'}'"
        )
    return known, unknown


def _walk(folder: str, list_folder: ListFolder, read: ReadSmall) -> Iterator[tuple[str, bool]]:
    folders, names = list_folder(folder)
    if "manifest.json" in names and any(name.endswith(".arrow") for name in names):
        raise ValueError(
            f"{folder} is a prepared store, not a corpus of files; give the store alone, or the files it came from"
        )
    if SAVED_STATE in names and SAVED_INFO in names:
        for name in _saved_shards(f"{folder}/{SAVED_STATE}", read):
            if name not in names:
                raise ValueError(f"{folder} lacks {name!r}, which its {SAVED_STATE} lists; copy or save it again")
            yield f"{folder}/{name}", True
        return
    if SAVED_SPLITS in names:
        chosen = _saved_split(f"{folder}/{SAVED_SPLITS}", read)
        for name in sorted(folders):
            for path, is_known in _walk(f"{folder}/{name}", list_folder, read):
                yield path, is_known and name == chosen
        return
    for name in sorted(names):
        if not name.startswith("."):
            yield f"{folder}/{name}", suffixes(name)[0] in FOLDER_SUFFIXES
    for name in sorted(folders):
        if not name.startswith(".") and name != "__pycache__":
            yield from _walk(f"{folder}/{name}", list_folder, read)


def _saved_shards(path: str, read: ReadSmall) -> list[str]:
    try:
        state = _saved_json(path, read)
        if state.get("_indices_data_files"):
            raise ValueError(
                f"{path} says that the rows are to be taken by a list of indices; load the data set, "
                "flatten_indices() and save it again"
            )
        shards = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of shards ({error!r}); save the data set again") from None
    if not shards or not all(isinstance(name, str) for name in shards):
        raise ValueError(f"{path} lists no shards; save the data set again")
    return shards


def _saved_split(path: str, read: ReadSmall) -> str:
    splits = _saved_json(path, read).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
        raise ValueError(f"{path} is no list of splits; save the data set again")
    if "train" not in splits and len(splits) > 1:
        raise ValueError(f"{path} lists {listed(splits)}, none of them 'train'; name the folder of one")
    return "train" if "train" in splits else splits[0]


def _saved_json(path: str, read: ReadSmall) -> dict[str, Any]:
    try:
        found = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); save the data set again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object; save the data set again")
    return found


class _Folders:
    """Lists folders of this machine, through links too, but each only once: links may go round in circles."""

    def __init__(self) -> None:
        self.visited: set[str] = set()

    def look_into(self, folder: str) -> tuple[list[str], list[str]]:
        place = os.path.realpath(folder)
        if place in self.visited:
            return [], []
        self.visited.add(place)
        folders: list[str] = []
        names: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if os.path.isdir(entry.path):  # noqa: PTH112 - also False where a link goes in circles
                        folders.append(entry.name)
                    # A broken link is listed, so that it is an error or among what was skipped.
                    elif os.path.isfile(entry.path) or not os.path.exists(entry.path):  # noqa: PTH110, PTH113
                        names.append(entry.name)
        except OSError as error:
            raise ValueError(f"{folder} cannot be listed ({error.strerror}); check its permissions") from None
        return folders, names


def _read_small(path: str) -> bytes:
    with open_input(Path(path), path) as file:
        return file.read()
