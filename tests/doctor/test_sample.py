"""Sampling: bounded, spread, each line at most once; repeats against an exact count."""

import gzip
import io
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.data import lines
from mlm_pytorch.data.formats.record import Document
from mlm_pytorch.doctor import sample as sampling
from mlm_pytorch.doctor import tolerant
from mlm_pytorch.doctor.sample import Spread, count_repeats, draw_sample, merge_samples, places
from mlm_pytorch.doctor.tolerant import Tolerant


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=12).filter(any),
    st.integers(1, 4000),
    st.integers(1, 20),
)
def test_places_lie_within_files_and_do_not_overlap(sizes, read_bytes, count):
    found = places(sizes, read_bytes, count)
    assert found
    ends: dict[int, int] = {}
    for index, start, size in found:
        assert start >= 0
        assert size > 0
        assert start + size <= sizes[index]
        assert start >= ends.get(index, 0)
        ends[index] = start + size
    read = sum(size for _, _, size in found)
    if sum(sizes) <= read_bytes:
        assert read == sum(sizes)
    else:
        assert read <= 2 * max(read_bytes, count)


def test_places_are_spread():
    found = places([10_000] * 10, 1000, 50)
    assert Counter(index for index, _, _ in found) == dict.fromkeys(range(10), 5)


@given(st.integers(1, 3000))
def test_spread_keeps_within_bounds_and_from_all_over(count):
    spread = Spread(max_documents=100, max_characters=3000)
    for number in range(count):
        spread.add(Document(f"document {number}", None))
    kept = [int(document.text.split()[1]) for document in spread.documents]
    assert kept == sorted(set(kept))
    assert len(kept) <= 100
    if count <= 100:
        assert len(kept) == count
    else:
        assert len(kept) >= 40
        gaps = np.diff([-1, *kept, count])
        assert gaps.max() <= 6 * count / len(kept)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.jsonl"
    rows = [json.dumps({"text": f"document {number} " + "word " * (number % 40)}) for number in range(20_000)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_large_file_is_read_in_ranges_each_line_once(large):
    sample = draw_sample([large], read_bytes=1 << 18)
    numbers = [int(document.text.split()[1]) for document in sample.documents]
    assert len(numbers) == len(set(numbers)) == sample.documents_read
    assert not sample.whole
    assert not sample.failed
    assert 1 << 17 <= sample.bytes_read <= 1 << 19
    assert 0.8 * 20_000 <= sample.documents_estimate <= 1.2 * 20_000
    assert np.histogram(numbers, bins=10, range=(0, 20_000))[0].min() > 0  # from all over


def test_ranges_that_cover_a_file_give_every_line(large):
    corpus = Tolerant([large])
    size, found = large.stat().st_size, []
    for start in range(0, size, 10_007):
        found += [d.text for d in corpus.read_range(corpus.files[0], start, min(10_007, size - start))]
    assert found == [json.loads(line)["text"] for line in large.read_text().splitlines()]


def test_what_is_compressed_is_read_from_its_beginning(large, tmp_path):
    path = tmp_path / "large.jsonl.gz"
    path.write_bytes(gzip.compress(large.read_bytes()))
    sample = draw_sample([path], read_bytes=path.stat().st_size // 4)
    assert not sample.whole
    assert 0 < sample.documents_read < 20_000


def test_many_files_are_read_in_part(tmp_path):
    for number in range(200):
        (tmp_path / f"{number:03d}.txt").write_text("".join(f"file {number} line {i}\n" for i in range(100)))
    sample = draw_sample([tmp_path], read_bytes=20_000)
    assert sample.files == 200
    assert 20 <= sample.files_read <= 64
    assert sample.line_documents


def test_standard_input(monkeypatch):
    class Piped:
        buffer = io.BytesIO(b"one line of text\nanother line of text\n")

        def fileno(self):
            raise io.UnsupportedOperation

    monkeypatch.setattr("sys.stdin", Piped())
    sample = draw_sample(["-"])
    assert [document.text for document in sample.documents] == ["one line of text", "another line of text"]
    assert sample.bytes_total is None


def test_reading_stops_when_time_is_over(large, monkeypatch):
    monkeypatch.setattr(sampling, "READ_SECONDS", -1.0)
    sample = draw_sample([large], read_bytes=1 << 18)
    assert 0 < sample.documents_read < 1000
    assert not sample.whole


def test_what_cannot_be_read_takes_no_more_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "READ_SECONDS", -1.0)
    path = tmp_path / "broken.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "good"}\n' + b"{\n" * 1000))
    sample = draw_sample([path])
    assert (sample.documents_read, sample.failed, sample.whole) == (1, 1, False)
    assert count_repeats([path], -1.0)[1] is not None


def test_a_file_without_line_ends_takes_no_memory(tmp_path, monkeypatch):
    for module in (tolerant, lines):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1 << 14)
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(1 << 24)
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"long\.jsonl.* line .*larger than 16,384 bytes, the most that a document"
        ):
            draw_sample([path], read_bytes=1 << 16)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()
    with path.open("r+b") as file:
        file.seek(0, io.SEEK_END)
        file.write(b"\n" + b'{"text": "good"}\n' * 100_000)
    sample = draw_sample([path], read_bytes=1 << 16)
    assert sample.documents_read > 100
    assert sample.failed == 1  # however many places lie in that line


def test_the_share_of_a_corpus_of_unknown_size_is_unknown(monkeypatch):
    class Piped:
        def __init__(self):
            self.buffer = io.BytesIO(b"".join(b"line %d of text\n" % number for number in range(5000)))

        def fileno(self):
            raise io.UnsupportedOperation

    monkeypatch.setattr("sys.stdin", Piped())
    monkeypatch.setattr(sampling, "READ_DOCUMENTS", 100)
    sample = draw_sample(["-"])
    assert sample.documents_read < 5000 and not sample.whole
    assert sample.share_read is None and sample.documents_estimate is None
    assert sample.characters_estimate == sample.characters_read  # at least
    merged = merge_samples([sample, sample], [0.5, 0.5])
    assert merged.share_read is None
    monkeypatch.setattr("sys.stdin", Piped())
    assert count_repeats(["-"], -1.0)[1] is None


def test_repeats_of_a_large_file(large):
    repeats, share = count_repeats([large], 60.0)
    assert share == 1.0
    assert repeats.documents == 20_000
    stopped, share = count_repeats([large], -1.0)
    assert stopped.documents < 20_000
    assert share < 1


def test_a_mixture_has_documents_by_weight(tmp_path):
    samples = []
    for name, count in (("a", 900), ("b", 300)):
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(count)))
        samples.append(draw_sample([tmp_path / name]))
    merged = merge_samples(samples, [0.5, 0.5])
    counts = Counter(document.text[0] for document in merged.documents)
    assert counts["b"] == 300
    assert counts["a"] == 900
    assert merged.documents_read == 1200
    assert merged.files == 2


def test_a_corpus_of_blank_lines(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\n")
    with pytest.raises(
        ValueError, match=r"^the corpus .*blank\.txt holds no documents \(3 empty ones\); name files with text or ids$"
    ):
        draw_sample([tmp_path / "blank.txt"])
