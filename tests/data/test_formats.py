"""One format after the other: what is read, and what is said of files that are not as they should be."""

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaged_files import check, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data import lines as lines_module
from mlm_pytorch.data.corpus import Corpus, documents
from mlm_pytorch.data.formats import columns, csv_records, fasta, json_records, npy, text

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def texts(*paths, **options):
    return [document.text for document in documents(list(paths), **options)]


def ids(*paths, **options):
    found = list(documents(list(paths), **options))
    assert all(document.ids.dtype == np.int64 and document.text == "" for document in found)
    return [document.ids.tolist() for document in found]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as raised:
        list(documents([path], **options))
    assert "\n" not in str(raised.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_arrays_and_objects(tmp_path, indent, pack):
    records = [{"text": f'"{i}" \\ {{[', "source": "s", "more": [{"a": [1]}]} for i in range(3)]
    path = write(tmp_path / "a.json", pack(json.dumps(records, indent=indent).encode()))
    assert [(document.text, document.source) for document in documents([path])] == [
        (f'"{i}" \\ {{[', "s") for i in range(3)
    ]
    objects = "\n".join(json.dumps(record, indent=indent) for record in records)
    assert texts(write(path, pack(objects.encode()))) == [f'"{i}" \\ {{[' for i in range(3)]
    assert texts(write(path, pack(b"\xef\xbb\xbf [ ] \n"))) == []
    assert texts(write(path, b"")) == []


@settings(max_examples=60)
@given(
    values=st.lists(TEXT, max_size=6), indent=st.sampled_from([None, 2]), ascii=st.booleans(), chunk=st.integers(1, 9)
)
def test_json_arrays_hold_what_was_written_however_they_are_cut_into_chunks(values, indent, ascii, chunk):
    content = json.dumps([{"text": value} for value in values], indent=indent, ensure_ascii=ascii).encode()
    reader = io.BufferedReader(io.BytesIO(content), chunk)
    assert [json.loads(value)["text"] for value in json_records._Values(reader, "a.json")] == values


@pytest.mark.parametrize("size", [1, 7, 8, 9, 200])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_is_told_by_more_than_its_first_bytes(tmp_path, size, pack):
    blanks, member = " " * size, "x" * size
    for content in (
        f'{blanks}[{{"text": "a"}}]',
        f'{{"{member}": 1,\n "text": "a"}}',
        f'{blanks}{{"{member}": 1, "text": "a"}}\n',
        f'{blanks}\n{{\n"text": "a"}}',
    ):
        assert texts(write(tmp_path / "a.json", pack(content.encode()))) == ["a"], content


def test_lists_of_ids_in_json(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"input_ids": [1, 2, 3]}\n{"input_ids": []}\n{"input_ids": null}\n{"input_ids": [0]}'
    )
    corpus = Corpus([path], num_tokens=4)
    assert [document.ids.tolist() for document in corpus] == [[1, 2, 3], [0]]
    assert corpus.empty_documents == 2
    assert ids(write(tmp_path / "b.json", '[{"genes": [7]}]'), column="genes") == [[7]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, 5]', r"a\.json record 2 \(line 1\) begins with b'5'; only objects"),
        ('[\n{"text": "a"}\n{"text": "b"}]', r"line 3: after record 1 comes b'{', not a comma or the end"),
        ('[{"text": "a"},]', r"record 2 \(line 1\) begins with b'\]'"),
        ('[{"text": "a"},\n', r"a\.json ends within its array, after 1 records; it was cut off"),
        ("[", r"a\.json ends within its array, after 0 records"),
        ('[{"text": "a"}]\n{"text": "b"}', r"line 2: more follows the end of the array"),
        ('[{"text": "a}]\n', r"record 1 \(line 1\) has no end; the file was cut off or a quote"),
        ('[{"text": "a"},\n\n{"text": ]}]', r"record 2 \(line 3\) is not JSON \(.*\); repair it"),
        (b'[\n{"text": "a\xff"}]', r"record 1 \(line 2\): byte 0xff is not UTF-8; repair or convert .*replace"),
        ('{\n"text": "a"\n},\n{"text": "b"}', r"record 2 \(line 3\) begins with b','"),
        ('{"text": "a\n{"text": "b"}', r"a\.json line 1 is not JSON"),
        ('{"text": "a"}\n{"text": 1}', r"a\.json line 2: 'text' is a JSON number, not a string or a list of ids"),
        ('"text"', r"a\.json line 1 is a JSON string"),
        (
            '[{"input_ids": [1, "2"]}]',
            r"is a JSON array whose item 2 is of type string, but ids are integers",
        ),
        ('[{"input_ids": [true]}]', r"item 1 is of type boolean"),
        ('[{"input_ids": [1, 2.0]}]', r"item 2 is of type number"),
        ('[{"input_ids": [1, -2]}]', r"record 1 \(line 1\): id -2 is negative; ids count from 0"),
        ('[{"input_ids": [9, 10]}]', r"id 10 is not less than num_tokens 10; raise --num-tokens or repair"),
        (f'[{{"input_ids": [{10**30}]}}]', r"id of more than 20 digits is not less than num_tokens"),
        ('[{"input_ids": "1 2"}]', r"'input_ids' is text, not a list of ids; name another"),
        ('[{"text": "a", "input_ids": [1]}]', r"could mean any of 'text', 'input_ids'; its columns are"),
    ],
)
def test_what_is_wrong_with_json(tmp_path, content, message):
    refused(write(tmp_path / "a.json", content), message, num_tokens=10)


@pytest.mark.parametrize("value", ['"input_ids": [5, 6]', '"text": "a"'])
def test_half_a_character_in_a_source(tmp_path, value):
    path = write(tmp_path / "a.jsonl", f'{{{value}, "source": "x\\ud800"}}\n')
    refused(path, r"a\.jsonl line 1 holds half a character \(\\ud800\); repair it or pass --encoding-errors replace")
    assert [document.source for document in Corpus([path], encoding_errors="replace")] == ["x\ufffd"]


def test_ids_are_checked_without_num_tokens_too(tmp_path):
    refused(write(tmp_path / "a.jsonl", '{"input_ids": [4294967296]}'), r"id 4294967296 is too large; ids must be less")
    refused(write(tmp_path / "a.jsonl", '{"input_ids": [-1]}'), r"line 1: id -1 is negative")
    with pytest.raises(ValueError, match="num_tokens 0 leaves no ids"):
        Corpus([tmp_path], num_tokens=0)


# -- CSV and TSV -------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), max_size=6),
    quoting=st.sampled_from([0, 1]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_holds_what_was_written(tmp_path_factory, rows, quoting, end):
    import csv

    rows = [(label, text.replace("\r", "")) for label, text in rows]  # a lone return may be read as a line end
    rows = [(label.replace("\r", ""), text) for label, text in rows]
    out = io.StringIO(newline="")
    csv.writer(out, quoting=quoting, lineterminator=end).writerows([("label", "text"), *rows])
    path = write(tmp_path_factory.mktemp("law") / "a.csv", out.getvalue())
    assert texts(path) == [text for _, text in rows if text.strip()]


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 9), TEXT), max_size=6), everything=st.booleans())
def test_tsv_that_is_quoted_holds_what_was_written(tmp_path_factory, rows, everything):
    import csv

    # What no line of TSV can tell from a quote: see the next test.
    rows = [(label, text.replace("\r", "").replace("\t", " ")) for label, text in rows]
    rows = [(label, f"{text}\nmore" if label < 3 else text) for label, text in rows]
    out = io.StringIO(newline="")
    csv.writer(out, "excel-tab", quoting=int(everything), lineterminator="\n").writerows([("label", "text"), *rows])
    path = write(tmp_path_factory.mktemp("law") / "a.tsv", out.getvalue())
    assert texts(path) == [text for _, text in rows if text.strip()]


def test_tsv_with_quotes_that_mean_nothing(tmp_path):
    lines = ['1\t" home movie " is sweet', '0\t" not really as bad "', '1\t"open', '0\tclosed"', '1\t"', '0\ta "b" c']
    path = write(tmp_path / "a.tsv", "\n".join(["label\ttext", *lines, ""]))
    assert texts(path) == [line.partition("\t")[2] for line in lines]
    assert texts(write(path, 'text\tn\n"a ""b""\tc"\t1\n\nd\t2\n')) == ['a "b"\tc', "d"]


def test_csv_columns_and_sources(tmp_path):
    path = write(tmp_path / "a.csv.gz", gzip.compress(b"\xef\xbb\xbfsource,text,x\nnews,a,1\n,b,2\n\nweb,,3\n"))
    corpus = Corpus([path])
    assert [(document.text, document.source) for document in corpus] == [("a", "news"), ("b", "a.csv.gz")]
    assert corpus.empty_documents == 1
    assert texts(path, column="x") == ["1", "2", "3"]
    assert texts(write(tmp_path / "long.csv", "text\n" + "x" * 200_000)) == ["x" * 200_000]  # csv's own limit is less


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv is empty; its first line must name the columns"),
        ("a.tsv", "\n\n", r"a\.tsv is empty"),
        ("a.csv", "a;text\n1;b\n", r"a\.csv line 1, which names the columns, has none of .*; its columns are 'a;text'"),
        ("a.csv", "text,content\n", r"could mean any of 'text', 'content'"),
        ("a.csv", "text,text\n", r"has more than one 'text', but 'text', 'text'; name one"),
        ("a.csv", "input_ids\n1 2", r"has 'input_ids', but ids are read from JSON lines"),
        (
            "a.csv",
            "text,n\na,1\n\nb\n",
            r"a\.csv record 2 \(line 4\) has 1 fields where the first line names 2; repair",
        ),
        ("a.csv", 'text,n\n"a\nb",1\nc,2,3\n', r"record 2 \(line 4\) has 3 fields"),
        ("a.csv", 'text,n\n"a,1\n', r"a\.csv line 2: unexpected end of data; a field with quotes"),
        ("a.csv", 'text,n\n"a\nb"c,1\n', r"a\.csv line 2 to 3: ',' expected after '\"'"),
        ("a.tsv", "text\tn\na\n", r"a\.tsv record 1 \(line 2\) has 1 fields"),
        ("a.tsv", 'text\tn\n"a\n', r"a\.tsv line 2: unexpected end of data"),
        ("a.csv", b"text\na\n\xff\n", r"a\.csv line 3: byte 0xff at offset 7"),
    ],
)
def test_what_is_wrong_with_csv(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_csv_column_that_is_not_there(tmp_path):
    refused(write(tmp_path / "a.csv", "text\na\n"), r"has no 'body', but 'text'; name one of them", column="body")


# -- FASTA and FASTQ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix",
    [
        *[
            ".fasta",
            ".fa",
            ".fna",
            ".faa",
            ".ffn",
            ".frn",
            ".fas",
            ".fsa",
            ".mfa",
            ".afa",
            ".pep",
            ".a2m",
            ".a3m",
            ".unknown",
        ],
        *[".fa.gz", ".fas.bgz", ".unknown.gz"],
    ],
)
def test_fasta(tmp_path, suffix):
    content = b">a some words\nACGT\nacgtNN\n\n; comment\n>empty\n>b\r\nMK*\r\nV-.\r\n"
    corpus = Corpus([write(tmp_path / f"a{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)])
    assert [document.text for document in corpus] == ["ACGTacgtNN", "MK*V-."]
    assert corpus.empty_documents == 1


def test_fastq(tmp_path):
    content = "@r1 x\nACGT\n+\nIII@\n@r2\nacgN\n+r2\n@@@@\n\n@r3\n\n+\n\n"
    corpus = Corpus([write(tmp_path / "a.fastq", content)])
    assert [document.text for document in corpus] == ["ACGT", "acgN"]
    assert corpus.empty_documents == 1
    assert texts(write(tmp_path / "a.fq.gz", gzip.compress(b"@r\r\nAC\r\n+\r\nII\r\n"))) == ["AC"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (">a x\nAC-*\nac\n", ["AC-*ac"]),
        ("\n>a\r\n\r\nAC\r\n>b\nGT", ["AC", "GT"]),
        ("\ufeff>a\nAC\n", ["AC"]),
        ("@r\nACGT\n+\nIIII\n", ["ACGT"]),
        ("> said she\nand so on\n", ["> said she", "and so on"]),  # quoted mail
        (">a\nAC.GT\nac..\n", ["AC.GTac.."]),
        (">a\nMKTAYIAKQRQIS.vkSHFSrq\n", ["MKTAYIAKQRQIS.vkSHFSrq"]),
        (">a empty\n>b\n\n>c\nACGT\n", ["ACGT"]),
        (">I agree\n>so do I\nGood\n", [">I agree", ">so do I", "Good"]),
        (">I agree\nGood.\n", [">I agree", "Good."]),
        ("> quoted\n> again\nGood\n", ["> quoted", "> again", "Good"]),
        ("@r\nAC.GT\n+\nIIIII\n", ["AC.GT"]),
        ("@r\n\n+\n\n@s\nAC\n+\nII\n", ["AC"]),
        (">a\n", [">a"]),
        (">a\n>b\n", [">a", ">b"]),
        ("@you\nhello\nthere\n", ["@you", "hello", "there"]),
        ("@r\nAC GT\n+\nIIIII\n", ["@r", "AC GT", "+", "IIIII"]),
    ],
)
def test_sequences_without_a_suffix_are_told_by_their_first_lines(tmp_path, monkeypatch, content, expected):
    assert texts(write(tmp_path / "a.unknown", content)) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert texts("-") == expected
    named = write(tmp_path / "a.txt", content)  # which says what it is
    assert texts(named)[0][:1] in (">", "@")


@settings(max_examples=30)
@given(sequences=st.lists(st.text("ACGTacgtN*-", max_size=30), max_size=6), width=st.integers(1, 12))
def test_fasta_holds_what_was_written(tmp_path_factory, sequences, width):
    wrapped = [
        "\n".join([f">{i}", *(s[at : at + width] for at in range(0, len(s), width))]) for i, s in enumerate(sequences)
    ]
    assert texts(write(tmp_path_factory.mktemp("law") / "a.fa", "\n".join(wrapped))) == [s for s in sequences if s]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.fasta",
            "ACGT\n>a\n",
            r"a\.fasta line 1 comes before any header; a FASTA record begins with",
        ),
        (
            "a.fasta",
            ">a\nAC\nA1T\n",
            r"a\.fasta line 3: '1' \(column 2\) is not of a sequence, .*; repair it \(if the file is text, name",
        ),
        ("a.fasta", ">a\rACGT\r>b\rGG\r", r"a\.fasta line 1 holds a carriage return, .*; convert it: tr '\\r' '\\n'"),
        ("a.fastq", "@a\rAC\r+\rII\r", r"a\.fastq line 1 holds a carriage return"),
        ("a.fasta", ">a\nAC GT\n", r"line 2: ' ' \(column 3\)"),
        ("a.fasta", ">a\nACÜ\n", r"line 2: 'Ü' \(column 3\)"),
        ("a.fastq", ">a\nAC\n", r"a\.fastq record 1 \(line 1\) begins with '>', not with @; a FASTQ record has four"),
        ("a.fastq", "@a\nAC\n+\nII\n@b\nAC\n", r"record 2 \(line 5\) is cut off within its four lines; copy"),
        ("a.fastq", "@a\nAC\nGT\n+\nIIII\n", r"record 1 \(line 1\): its third line is not \+ \(or"),
        ("a.fastq", "@a\nAC\n+b\nII\n", r"its third line is not \+"),
        ("a.fastq", "@a\nAC\n+\nIII\n", r"record 1 \(line 1\) has 2 letters but 3 qualities; copy"),
        ("a.fastq", "@a\nA?\n+\nII\n", r"a\.fastq line 2: '\?' \(column 2\) is not of a sequence"),
        ("a.fastq", "@a\nAC\n+\nI\x07\n", r"record 1 \(line 1\): '\\x07' is no quality"),
    ],
)
def test_what_is_wrong_with_sequences(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_a_long_record_takes_memory_in_proportion(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.fa", ">chromosome\n" + ("ACGTacgtNN" * 6 + "\n") * 50_000)
    tracemalloc.start()
    assert [len(text) for text in texts(path)] == [3_000_000]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 3_000_000


# -- Arrow and Parquet -------------------------------------------------------------------------------------------------


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


# -- NPY ---------------------------------------------------------------------------------------------------------------


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


# -- limits, damage, real files ----------------------------------------------------------------------------------------


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
