"""Duplicates by sorted runs on disk, against a set in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data.duplicates import Dropped, HashLog, count_seen_before, repeated_documents, write_dropped


@settings(deadline=None, max_examples=100)
@given(
    batches=st.lists(st.lists(st.integers(0, 12)), max_size=8),
    words=st.integers(1, 2),
    run=st.integers(1, 40),
    shift=st.sampled_from([0, 60]),
)
def test_against_a_set(tmp_path_factory, batches, words, run, shift):
    folder = tmp_path_factory.mktemp("law")
    log = HashLog(folder / "log", words)
    rows = [[(value % 5) << shift, value][-words:] for batch in batches for value in batch]
    done = 0
    for batch in batches:
        log.add(np.array(rows[done : done + len(batch)], np.uint64).reshape(-1, words))
        done += len(batch)
    seen, expected = set(), set()
    for number, row in enumerate(rows):
        if tuple(row) in seen:
            expected.add(number)
        seen.add(tuple(row))
    found = [number for part in repeated_documents(log, folder, run) for number in part.tolist()]
    assert sorted(found) == sorted(expected)  # each once
    assert sorted(path.name for path in folder.iterdir()) == ["log"]
    count = write_dropped(folder / "dropped", log.num_documents, repeated_documents(log, folder, run))
    dropped = Dropped(folder / "dropped")
    assert count == len(expected)
    assert {number for number in range(len(rows)) if number in dropped} == expected
    first = len(rows) // 2
    if words == 1:
        assert count_seen_before(log, first, run) == sum(row in rows[:first] for row in rows[first:])
    later = Dropped(folder / "dropped", first=min(3, len(rows)))
    assert [number in later for number in range(len(rows) - 3)] == [
        number + 3 in dropped for number in range(len(rows) - 3)
    ]


def test_memory_holds_a_run(tmp_path, monkeypatch):
    """Whatever the number of documents, and however many are equal, no more than a few runs' hashes are in memory."""
    generator = np.random.default_rng(0)
    log = HashLog(tmp_path / "log", 1)
    for _ in range(40):
        hashes = generator.integers(0, 2**63, 1000, dtype=np.uint64) * np.uint64(2)
        hashes[::2] = 7  # half of all documents are one and the same
        log.add(hashes)
    largest = 0
    real = np.lexsort

    def lexsort(keys):
        nonlocal largest
        largest = max(largest, keys.shape[1])
        return real(keys)

    monkeypatch.setattr(np, "lexsort", lexsort)
    count = sum(map(len, repeated_documents(log, tmp_path, 1000)))
    assert count == 20 * 1000 - 1
    assert largest < 1300


def test_a_log_goes_on(tmp_path):
    log = HashLog(tmp_path / "log", 1)
    log.add(np.arange(10, dtype=np.uint64))
    log.sync()
    again = HashLog(tmp_path / "log", 1, 4)
    again.add(np.array([2, 77], dtype=np.uint64))
    assert np.fromfile(tmp_path / "log", "<u8").tolist() == [0, 1, 2, 3, 2, 77]
    assert [part.tolist() for part in repeated_documents(again, tmp_path)] == [[4]]


def test_a_log_that_is_too_short(tmp_path):
    """What a journal promised is not there: that is no hash of 0."""
    with pytest.raises(ValueError, match=r"log holds fewer hashes than were written; remove .* and start over"):
        HashLog(tmp_path / "log", 1, 4)
