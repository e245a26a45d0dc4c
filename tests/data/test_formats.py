"""What holds for every format: limits, damage, what real files hold."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaged_files import check, samples
from readings import ids, refused, texts, write

from mlm_pytorch.data import lines as lines_module
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.formats import columns, csv_records, fasta, json_records, npy, text

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def save_arrow(path, table, stream, **options):
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".unknown"])
def test_arrow(tmp_path, stream, suffix):
    table = pa.table({"n": range(1000), "text": [f"ä {i}" for i in range(1000)], "source": ["x", None] * 500})
    path = save_arrow(tmp_path / f"a{suffix}", table, stream)
    corpus = Corpus([path])
    done = [corpus.bytes_done for _ in corpus]
    assert done == sorted(done) and corpus.bytes_done == corpus.bytes_total
    assert [(document.text, document.source) for document in corpus] == [
        (f"ä {i}", f"a{suffix}" if i % 2 else "x") for i in range(1000)
    ]
    packed = save_arrow(path, table, stream, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    assert len(texts(packed)) == 1000


KINDS = [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int8()), pa.list_(pa.uint64())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_columns_of_ids(tmp_path, kind):
    rows = [[1, 2, 3], [], None, [4], [0, 100]]
    table = pa.table({"input_ids": pa.array(rows, kind), "length": range(5)})
    for path in (tmp_path / "a.arrow", tmp_path / "a.parquet"):
        if path.suffix == ".arrow":
            save_arrow(path, table, stream=False)
        else:
            pq.write_table(table, path, row_group_size=2)
        assert ids(path) == [[1, 2, 3], [4], [0, 100]]
        refused(path, rf"a{path.suffix} row 5: id 100 is not less than num_tokens 100", num_tokens=100)
        refused(path, r"row 1: id 2 is not less than num_tokens 2", num_tokens=2)


def test_ids_of_fixed_length_named_by_hand(tmp_path):
    table = pa.table({"genes": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)), "text": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert ids(tmp_path / "a.parquet", column="genes") == [[1, 2], [3, 4]]
    assert texts(tmp_path / "a.parquet") == ["a", "b", "c"]


def test_what_is_wrong_with_columns(tmp_path):
    path = tmp_path / "a.arrow"
    save_arrow(path, pa.table({"input_ids": [[1], [2, None]]}), stream=True)
    refused(path, r"a\.arrow row 2: its list has a null in place of an id")
    save_arrow(path, pa.table({"input_ids": [[1]] * 400 + [[2, -7]]}), stream=True)
    refused(path, r"a\.arrow row 401: id -7 is negative")
    save_arrow(path, pa.table({"input_ids": pa.array([[1, 2**64 - 1]], pa.list_(pa.uint64()))}), stream=True)
    refused(path, r"row 1: id 18446744073709551615 is too large")
    save_arrow(path, pa.table([["a"], ["b"]], ["text", "text"]), stream=True)
    refused(path, r"a\.arrow has more than one 'text' of 'text', 'text'; name one")
    save_arrow(path, pa.table({"text": [1]}), stream=True)
    refused(path, r"column 'text' holds int64, neither text nor lists of ids; of 'text' name another")
    bad = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    save_arrow(path, pa.table({"text": bad}), stream=False)
    refused(path, r"a\.arrow row 2: byte 0xff at offset 0 of the text is not UTF-8; repair it or pass")
    assert texts(path, encoding_errors="replace") == ["ok", "\ufffd"]


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_that_was_cut_off(tmp_path, stream):
    content = save_arrow(tmp_path / "a.arrow", pa.table({"text": [str(i) for i in range(1000)]}), stream).read_bytes()
    message = "has no end-of-stream mark" if stream else "is damaged Arrow after row 0"
    for size in (len(content) - 8, len(content) // 2, 100, 12):
        refused(write(tmp_path / "a.arrow", content[:size]), message)
    refused(write(tmp_path / "a.arrow", b"text"), r"a\.arrow is not Arrow \(it begins with b'text'\); rename")
    refused(write(tmp_path / "a.arrow.gz", gzip.compress(content)), r"is not Arrow \(it is compressed as a whole\)")
    if stream:  # two streams in one file: only the first would be read
        refused(write(tmp_path / "a.arrow", content * 2), "is damaged Arrow: it goes on after its end")


@pytest.mark.parametrize("held", [0, 1 << 26])
def test_large_chunks_of_parquet_are_read_through_a_buffer(tmp_path, monkeypatch, held):
    monkeypatch.setattr(columns, "HELD_CHUNK_BYTES", held)
    rows = [str(i) * 100 for i in range(2000)]
    pq.write_table(pa.table({"text": rows, "n": range(2000)}), tmp_path / "a.parquet", row_group_size=700)
    assert texts(tmp_path / "a.parquet") == rows


def test_rows_of_parquet_are_read_by_their_size(tmp_path):
    import tracemalloc

    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 30}), tmp_path / "a.parquet", use_dictionary=False)
    corpus = Corpus([tmp_path / "a.parquet"])
    tracemalloc.start()
    assert sum(len(document.text) for document in corpus) == 30_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("kind", ["u1", "<u2", ">i4", "i8", "u8"])
def test_npy(tmp_path, kind):
    array = np.arange(100, dtype=kind).reshape(20, 5)
    np.save(tmp_path / "a.npy", array)
    assert ids(tmp_path / "a.npy") == array.tolist()
    refused(tmp_path / "a.npy", r"a\.npy row 19: id 90 is not less than num_tokens 90", num_tokens=90)
    np.save(tmp_path / "b.npy", array[0])
    assert ids(tmp_path / "b.npy") == [[0, 1, 2, 3, 4]]
    packed = write(tmp_path / "c.npy.gz", gzip.compress((tmp_path / "a.npy").read_bytes()))
    assert ids(packed) == array.tolist()


def test_npy_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "CHUNK_BYTES", 64)
    array = np.arange(300).reshape(100, 3)
    np.save(tmp_path / "a.npy", array)
    assert ids(tmp_path / "a.npy") == array.tolist()
    refused(tmp_path / "a.npy", r"row 67: id 200 is not less", num_tokens=200)


def test_what_is_wrong_with_npy(tmp_path):
    path = tmp_path / "a.npy"
    for array, message in [
        (np.zeros((2, 2)), r"a\.npy holds float64, not integers"),
        (np.zeros((2, 2), bool), r"a\.npy holds bool, not integers"),
        (np.zeros((2, 2, 2), int), r"a\.npy has 3 dimensions; ids are read from \(documents, length\) or \(length,\)"),
        (np.array(3), r"has 0 dimensions"),
        (np.zeros((3, 0), int), r"a\.npy holds no ids \(its shape is \(3, 0\)\)"),
        (np.asfortranarray(np.ones((3, 2), int)), r"lies column by column; save numpy\.ascontiguousarray\(array\)"),
        (np.array([[1], [-2]]), r"a\.npy row 2: id -2 is negative"),
        (np.array([{}], object), r"a\.npy holds object, not integers"),
    ]:
        np.save(path, array, allow_pickle=True)
        refused(path, message)
    np.save(path, np.ones((10, 3), np.int64))
    content = path.read_bytes()
    refused(write(path, content[:-50]), r"a\.npy ends within row 8 of 10; it was cut off: copy it again")
    refused(write(path, content + b"x"), r"a\.npy goes on after the 30 ids that its header promises")
    refused(write(path, content[:40]), r"a\.npy is damaged NPY \(.*\); save it again with numpy\.save")
    refused(write(path, content.replace(b"(10, 3)", b"(-9, 3)")), r"is damaged NPY \(its shape is \(-9, 3\)\)")
    refused(write(path, b"1 2 3"), r"a\.npy is not NPY|is damaged NPY")


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.txt", "a\n" + "x" * 200, {}),
        ("a.txt", "ab\n" * 100, {"split_text": "file"}),
        ("a.txt", "ab\n" * 100, {"split_text": "paragraph"}),
        ("a.jsonl", json.dumps({"text": "x" * 200}), {}),
        ("a.json", json.dumps([{"text": "x" * 200}]), {}),
        ("a.csv", 'text\n"' + "x\n" * 100, {}),
        ("a.fa", ">a\n" + "ACGT\n" * 50, {}),
        ("a.npy", None, {}),
    ],
)
def test_documents_longer_than_the_limit(tmp_path, monkeypatch, name, content, options):
    import csv

    for module in (lines_module, text, json_records, csv_records, fasta, npy):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(json_records, "CHUNK_BYTES", 64)
    if content is None:
        np.save(tmp_path / name, np.zeros(1000, np.int64))
    else:
        write(tmp_path / name, content)
    limit = csv.field_size_limit(100)
    try:
        refused(tmp_path / name, "is larger than 100 bytes|field larger than field limit", **options)
    finally:
        csv.field_size_limit(limit)


SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_good_samples_are_read(tmp_path, name):
    sample = SAMPLES[name]
    for each, content in sample.files.items():
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_bytes(content)
    assert len(list(Corpus([tmp_path / sample.given], num_tokens=1000))) >= 14


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_give_an_error_or_a_result(tmp_path, name):
    for seed in range(20, 35):
        check(SAMPLES[name], seed, tmp_path / str(seed))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared corpora are not here")
def test_real_sequences():
    found = texts(SHARED / "sequences" / "metagenomics.fasta")
    assert len(found) == 100
    assert set("".join(found)) <= set("ACGTN")
    cells = SHARED / "sequences" / "genecorpus.parquet"
    assert ids(cells) == pq.read_table(cells)["input_ids"].to_pylist()
    refused(cells, r"genecorpus\.parquet row \d+: id \d+ is not less than num_tokens 1000", num_tokens=1000)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared corpora are not here")
@pytest.mark.parametrize("name", ["movie_sentiment_train", "subjectivity_valid"])
def test_real_tsv(name):
    path = SHARED / "downstream" / f"{name}.tsv"
    expected = [line.partition("\t")[2] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert texts(path) == expected
