"""CSV and TSV."""

import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import TEXT, refused, texts, write

from mlm_pytorch.data.corpus import Corpus


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


def test_tsv_with_an_open_quote_before_blank_lines(tmp_path):
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"Hello there\n\n')
    assert texts(path) == ['"Hello there']
    assert texts(write(path, 'id\ttext\n1\t"one\n\n\n2\ttwo\n\n')) == ['"one', "two"]
    assert texts(write(path, 'id\ttext\n1\t"one\n\n\nmore"\n\n2\ttwo\n')) == ["one\n\n\nmore", "two"]
    assert texts(write(path, 'text\tid\n"one\n\nmore"\t1\n\ntwo\t2\n')) == ["one\n\nmore", "two"]


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
        ("a.csv", 'text,n\n"a,1\n', r"a\.csv line 2: a quote begins a field here that is not closed up"),
        ("a.csv", 'text,n\n"a\nb"c,1\n', r"a\.csv line 2 to 3: ',' expected after '\"'"),
        ("a.tsv", "text\tn\na\n", r"a\.tsv record 1 \(line 2\) has 1 fields"),
        ("a.tsv", 'text\tn\n"a\n', r"a\.tsv line 2: a quote begins a field here .* double the quote"),
        ("a.csv", b"text\na\n\xff\n", r"a\.csv line 3: byte 0xff at offset 7"),
    ],
)
def test_what_is_wrong_with_csv(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_csv_column_that_is_not_there(tmp_path):
    refused(write(tmp_path / "a.csv", "text\na\n"), r"has no 'body', but 'text'; name one of them", column="body")
