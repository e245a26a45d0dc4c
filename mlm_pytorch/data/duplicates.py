"""Exact duplicates among any number of documents, by hashes sorted on disk: memory is bounded by the length of a run.

    HashLog                one hash per document, in their order, appended to a file
    repeated_documents     HashLog -> sorted runs without repeats -> merged, a range of hashes at a time
    count_seen_before      how many of a HashLog's later documents are among the earlier ones
    write_dropped, Dropped one bit per document, in a file

N documents, W 64-bit words of a hash
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

RUN_DOCUMENTS = 1 << 21  # sorted in memory at once; takes about 150 MB


class HashLog:
    """A file that grows by the hashes of documents, W little-endian words of 64 bits each.

    Of a file that is there, the hashes of `num_documents` are kept, so that a preparation can go on.
    """

    def __init__(self, path: Path, words: int, num_documents: int = 0):
        self.path, self.words, self.num_documents = path, words, num_documents
        with path.open("ab") as file:
            if file.tell() < 8 * words * num_documents:
                raise ValueError(f"{path} holds fewer hashes than were written; remove {path.parent} and start over")
            file.truncate(8 * words * num_documents)

    def add(self, hashes: np.ndarray) -> None:
        """Append (n,) or (n, W) words, uint64."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(hashes, "<u8").tobytes())
        self.num_documents += len(hashes)

    def sync(self) -> None:
        """Wait until the disk has all that was added."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())


def repeated_documents(log: HashLog, folder: Path, run_documents: int | None = None) -> Iterator[np.ndarray]:
    """The numbers of all documents whose hash came before, each once, in arrays of no particular order (int64).

    External sorting: runs of `run_documents` (None: `RUN_DOCUMENTS`) are sorted and written to `folder`, each hash
    once with the number of its first document. Then the range of hashes is cut into as many parts as there were runs;
    since hashes are spread evenly, what all runs hold of one part fits into memory as well as a run did.
    """
    run_documents = run_documents or RUN_DOCUMENTS
    runs: list[Path] = []
    num_kept = 0
    with log.path.open("rb") as file:
        for first in range(0, log.num_documents, run_documents):
            count = min(run_documents, log.num_documents - first)
            words_WN = np.fromfile(file, "<u8", count * log.words).reshape(count, log.words).T
            rows = np.concatenate([words_WN, np.arange(first, first + count, dtype=np.uint64)[None]])
            rows, repeated = _sort_out(rows)
            yield repeated
            num_kept += rows.shape[1]
            if log.num_documents > run_documents:
                runs.append(folder / f"run-{len(runs):05d}.npy")
                np.save(runs[-1], rows, allow_pickle=False)
    opened = [np.load(run, mmap_mode="r", allow_pickle=False) for run in runs]
    parts = -(-num_kept // run_documents) if runs else 0
    borders = np.array([part * 2**64 // parts for part in range(1, parts)], dtype=np.uint64)
    cuts = [[0, *np.searchsorted(run[0], borders).tolist(), run.shape[1]] for run in opened]
    for part in range(parts):
        slices = [run[:, cut[part] : cut[part + 1]] for run, cut in zip(opened, cuts, strict=True)]
        yield _sort_out(np.concatenate(slices, axis=1))[1]
    for run in runs:
        run.unlink()


def count_seen_before(log: HashLog, first: int, run_documents: int | None = None) -> int:
    """How many documents from number `first` on have the hash of one before it; of a log of one word a document."""
    assert log.words == 1
    run_documents = run_documents or RUN_DOCUMENTS

    def runs(start: int, stop: int) -> Iterator[np.ndarray]:
        for begin in range(start, stop, run_documents):
            yield np.fromfile(log.path, "<u8", min(run_documents, stop - begin), offset=8 * begin)

    count = 0
    for later in runs(first, log.num_documents):
        different, copies = np.unique(later, return_counts=True)
        seen = np.zeros(len(different), bool)
        for earlier in runs(0, first):
            place = np.searchsorted(different, earlier).clip(max=len(different) - 1)
            seen[place[different[place] == earlier]] = True
        count += int(copies[seen].sum())
    return count


def _sort_out(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W + 1, N) hashes above document numbers, numbers ascending where hashes are equal -> each hash once with its
    first document, sorted; and the numbers of the other documents.
    """
    rows = rows[:, np.lexsort(rows[-2::-1])]  # stable, the first word deciding first
    is_first = np.ones(rows.shape[1], bool)
    is_first[1:] = (rows[:-1, 1:] != rows[:-1, :-1]).any(axis=0)
    return rows[:, is_first], rows[-1, ~is_first].astype(np.int64)


class Dropped:
    """Numbers of documents to leave out: a file of one bit per document, of which a few pages are in memory."""

    def __init__(self, path: Path, first: int = 0):
        self.bits = np.memmap(path, np.uint8, "r")
        self.first = first  # the bit of document 0

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        number += self.first
        return bool(self.bits[number >> 3] >> (number & 7) & 1)


def write_dropped(path: Path, num_documents: int, repeated: Iterable[np.ndarray]) -> int:
    """Write the file of a `Dropped`; `repeated` holds each number once at most. Returns how many there are."""
    bits = np.memmap(path, np.uint8, "w+", shape=(num_documents // 8 + 1,))
    num_dropped = 0
    for numbers in repeated:
        np.bitwise_or.at(bits, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))
        num_dropped += len(numbers)
    bits.flush()
    return num_dropped
