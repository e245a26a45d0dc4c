"""Files -> documents: formats, places, counts, and what is said of files that cannot be read."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data.corpus import Corpus, Document, documents
from mlm_pytorch.data.files import suffixes

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def texts(*paths, **options):
    return [document.text for document in documents(list(paths), **options)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_compressed_or_not(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix]("one\ntwo äö\n\nthree".encode()))
    assert list(documents([path])) == [Document(text, path.name) for text in ("one", "two äö", "three")]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_json_lines_compressed_or_not(tmp_path, suffix):
    content = jsonl({"text": "one\nmore", "source": "news"}, {"text": "two", "source": 3}, {"text": "three"})
    path = write(tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](content.encode()))
    expected = [Document("one\nmore", "news"), Document("two", path.name), Document("three", path.name)]
    assert list(documents([path])) == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_several_members_and_zero_padding(tmp_path, suffix):
    content = COMPRESS[suffix](b"one\ntw") + COMPRESS[suffix](b"o\n" + b"x" * 3_000_000 + b"\n") + b"\0" * 1000
    found = texts(write(tmp_path / f"a.txt{suffix}", content))
    assert found[:2] == ["one", "two"]
    assert [len(text) for text in found] == [3, 3, 3_000_000]


@pytest.mark.parametrize("text", ["hello there\n", "hi\n", "\n\nПривет, мир.\n", "नमस्ते दुनिया\n", '{"text": "a"}\n'])
@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_wide_characters_without_a_mark(tmp_path, text, encoding):
    for name in ("a.txt", "a.jsonl", "a.csv", "a"):
        path = write(tmp_path / name, text.encode(encoding))
        with pytest.raises(
            ValueError, match=rf"{name} looks like {encoding}, not UTF-8; .* iconv -f {encoding} -t UTF-8"
        ):
            texts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.jsonl", "a.csv", "a.tsv", "a"])
def test_lines_that_end_in_returns_alone(tmp_path, name):
    path = write(tmp_path / name, "label\ttext\r1\tone\r2\ttwo\r")
    with pytest.raises(ValueError, match=rf"{name} line 1 holds a carriage return, .*; convert it: tr '\\r' '\\n'"):
        texts(path)


def test_returns_within_lines_are_text(tmp_path):
    for content in ("10%\r20%\r\nend", "one\r", "one\r\n", "one\ntwo\rthree"):  # of progress bars, for one
        assert texts(write(tmp_path / "a.txt", content)) == [x.removesuffix("\r") for x in content.split("\n") if x]


def test_a_rare_nul_is_text(tmp_path):
    for content in ("hello\0there\n", "\0\0\0\n", "a\0b\n", "1\n0\n1\n0\n", "a\tb\0c\td\n\0\n"):
        assert texts(write(tmp_path / "a.txt", content)) == content.split("\n")[:-1]


def test_compression_is_known_by_its_bytes(tmp_path):
    assert texts(write(tmp_path / "a.txt", gzip.compress(b"one\n"))) == ["one"]
    assert texts(write(tmp_path / "b.jsonl", COMPRESS[".zst"](b'{"text": "two"}'))) == ["two"]


def test_what_a_document_is(tmp_path):
    path = write(tmp_path / "a.txt", "one\r\ntwo\r\n\r\n \t\n\nthree\n")
    corpus = Corpus([path])
    assert [document.text for document in corpus] == ["one", "two", "three"]
    assert corpus.empty_documents == 3
    assert texts(path, split_text="paragraph") == ["one\ntwo", "three"]
    assert texts(path, split_text="file") == ["one\ntwo\n\n \t\n\nthree"]
    code = write(tmp_path / "a.py", "if a:\n    b\n")
    assert texts(code) == ["if a:\n    b"]
    assert texts(code, split_text="line") == ["if a:", "    b"]
    assert texts(write(tmp_path / "a.md", "# A\n\nb\n")) == ["# A\n\nb"]


def test_byte_order_mark_controls_and_unusual_line_ends_are_kept_or_skipped(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\x00\x1b[31m\x0b\x0c\u2028\u0085end\nlone\rreturn\n")
    assert texts(path) == ["one\x00\x1b[31m\x0b\x0c\u2028\u0085end", "lone\rreturn"]
    assert texts(write(tmp_path / "b.jsonl", '\ufeff{"text": "a"}\r\n\r\n{"text": "b"}')) == ["a", "b"]


def test_columns(tmp_path):
    records = [{"title": "t", "sequence": "MKV"}, {"title": "u", "sequence": "GAT"}]
    path = write(tmp_path / "a.jsonl", jsonl(*records))
    assert texts(path) == ["MKV", "GAT"]
    assert texts(path, column="title") == ["t", "u"]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["MKV", "GAT"]
    assert texts(tmp_path / "a.parquet", column="title") == ["t", "u"]


def test_null_and_blank_texts_are_counted_as_empty(tmp_path):
    write(tmp_path / "a.jsonl", jsonl({"text": None}, {"text": " \n"}, {"text": ""}, {"text": "x"}))
    pq.write_table(pa.table({"text": [None, "", "y"]}), tmp_path / "b.parquet")
    corpus = Corpus([tmp_path])
    assert [document.text for document in corpus] == ["x", "y"]
    assert corpus.empty_documents == 5


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_types(tmp_path, kind):
    table = pa.table({"text": pa.array(["a", "ü", "a"]).cast(kind), "source": ["x", None, "z"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = list(documents([tmp_path / "a.parquet"]))
    assert found == [Document("a", "x"), Document("ü", "a.parquet"), Document("a", "z")]


# -- which files -------------------------------------------------------------------------------------------------------


def test_folders_globs_and_order(tmp_path):
    for name in ("b.txt", "a/z.jsonl.gz", "a/c.py", ".git/x.txt", "c.bin", ".hidden.txt", "d/e/f.md"):
        content = gzip.compress(b'{"text": "json"}') if name.endswith(".gz") else name
        write(tmp_path / name, content)
    corpus = Corpus([tmp_path])
    assert [document.text for document in corpus] == ["b.txt", "a/c.py", "json", "d/e/f.md"]
    assert corpus.skipped_files == [tmp_path / "c.bin"]
    assert texts(tmp_path / "*.txt", tmp_path / "d") == ["b.txt", "d/e/f.md"]
    assert texts(f"{tmp_path}/**/*.md") == ["d/e/f.md"]
    assert texts(str(tmp_path / "b.txt")) == ["b.txt"]


def test_links_in_folders_are_followed_once(tmp_path):
    write(tmp_path / "corpus" / "a.txt", "a")
    write(tmp_path / "corpus" / "sub" / "b.txt", "b")
    write(tmp_path / "elsewhere" / "c.txt", "c")
    for name, target in {
        "linked": tmp_path / "elsewhere",
        "sub/up": tmp_path / "corpus",
        "sub2": tmp_path / "corpus" / "sub",
        "round": tmp_path / "corpus" / "round",
        "gone": tmp_path / "nowhere",
        ".#a.txt": tmp_path / "nowhere",  # as Emacs leaves beside a file that it edits
    }.items():
        (tmp_path / "corpus" / name).symlink_to(target)
    corpus = Corpus([tmp_path / "corpus"])
    assert [document.text for document in corpus] == ["a", "c", "b"]
    assert corpus.skipped_files == [tmp_path / "corpus" / "gone", tmp_path / "corpus" / "round"]
    (tmp_path / "corpus" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(
        ValueError, match=r"corpus/gone\.txt cannot be read \(No such file or directory\); check the path"
    ):
        Corpus([tmp_path / "corpus"])


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc", "a.wet", "a.wat", "a.xml", "a.html", "a.htm"])
def test_formats_that_are_not_read_are_refused_by_their_suffix(tmp_path, name):
    path = write(tmp_path / name, "<p>")
    message = rf"{name} has a format that is not read \({suffixes(name)[0]}\); convert it to \.jsonl, \.parquet or"
    with pytest.raises(ValueError, match=message):
        texts(path)
    write(tmp_path / "b.txt", "b")
    assert Corpus([tmp_path]).skipped_files == [path]


def test_a_text_that_begins_almost_like_bzip2(tmp_path):
    assert texts(write(tmp_path / "a.txt", "BZh9 is a file")) == ["BZh9 is a file"]


def test_a_file_named_with_an_unknown_suffix_is_text_or_json_lines(tmp_path):
    assert texts(write(tmp_path / "wiki.tokens", "a\nb")) == ["a", "b"]
    assert texts(write(tmp_path / "dump", '\n {"text": "a"}\n')) == ["a"]
    odd = write(tmp_path / "brackets[1].txt", "a")  # exists, so it is no pattern
    assert texts(odd) == ["a"]


def test_a_file_name_that_is_not_unicode(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    try:
        write(path, "a")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert list(documents([path])) == [Document("a", "\ufffd.txt")]


@pytest.mark.parametrize("with_descriptor", [True, False])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\ntwo\n", [Document("one", "stdin"), Document("two", "stdin")]),
        (b'\n{"text": "a", "source": "s"}\n', [Document("a", "s")]),
        (gzip.compress(b'{"text": "a"}', mtime=0), [Document("a", "stdin")]),
        (b"", []),
    ],
)
def test_standard_input_text_json_and_compressed(monkeypatch, content, expected, with_descriptor):
    if with_descriptor:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        stdin = os.fdopen(reading)
    else:  # as in notebooks
        stdin = io.TextIOWrapper(io.BytesIO(content))
    with stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert list(documents(["-"])) == expected


def test_standard_input_that_does_not_block_is_read_through_its_pauses(tmp_path, monkeypatch):
    def send(pipe):
        with os.fdopen(pipe, "wb", buffering=0) as out:
            for line in (b"o", b"ne\ntwo\n", b"three\n"):
                time.sleep(0.05)
                out.write(line)

    def standard_input():
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        threading.Thread(target=send, args=[writing]).start()
        return os.fdopen(reading)

    with standard_input() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert texts("-") == ["one", "two", "three"]
    with standard_input() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        corpus = Corpus(["-"])
        corpus.spool(tmp_path)
        assert [document.text for document in corpus] == ["one", "two", "three"]


def test_standard_input_that_is_closed_or_parquet(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"PAR1 and more")))
    with pytest.raises(ValueError, match="standard input is Parquet, which cannot be read from a pipe; save it"):
        texts("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed; name a file instead of -"):
        texts("-")


def test_pipes_are_read_once_and_can_be_spooled(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"text": "a"}\n'))
    writer.start()
    corpus = Corpus([pipe])
    assert corpus.bytes_total is None
    (tmp_path / "spool").mkdir()
    corpus.spool(tmp_path / "spool")
    writer.join()
    assert [list(corpus), list(corpus)] == [[Document("a", "pipe")]] * 2
    assert corpus.bytes_done == corpus.bytes_total == 14


def test_progress_counts_compressed_bytes(tmp_path):
    write(tmp_path / "a.txt.gz", gzip.compress(b"one\n" * 100_000))
    write(tmp_path / "b.txt", "two\n" * 10)
    pq.write_table(pa.table({"text": ["x"] * 1000}), tmp_path / "c.parquet")
    corpus = Corpus([tmp_path])
    seen = [corpus.bytes_done for _ in corpus]
    assert seen == sorted(seen)
    assert corpus.bytes_done == corpus.bytes_total == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_memory_stays_bounded(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.jsonl.gz", gzip.compress((json.dumps({"text": "word " * 200}) + "\n").encode() * 40_000))
    tracemalloc.start()
    assert sum(1 for _ in documents([path])) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20  # of 40 MB of text in 0.1 MB of gzip


# -- laws --------------------------------------------------------------------------------------------------------------

LINES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20), max_size=20)


@settings(deadline=None, max_examples=60)
@given(lines=LINES, ending=st.sampled_from(["\n", "\r\n"]), suffix=st.sampled_from(list(COMPRESS)))
def test_text_files_hold_the_lines_that_were_written(tmp_path_factory, lines, ending, suffix):
    lines = [line.rstrip("\r").removeprefix("\ufeff") for line in lines]
    path = tmp_path_factory.mktemp("law") / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](ending.join(lines).encode()))
    assert texts(path) == [line for line in lines if line.strip()]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=20), ascii=st.booleans()
)
def test_json_lines_hold_the_texts_that_were_written(tmp_path_factory, values, ascii):
    path = tmp_path_factory.mktemp("law") / "a.jsonl"
    lines = (json.dumps({"text": value}, ensure_ascii=ascii) + "\n" for value in values)
    path.write_text("".join(lines), encoding="utf-8", newline="")
    assert texts(path) == [value for value in values if value.strip()]


GOOD = {
    f"a.jsonl{suffix}": COMPRESS[suffix](jsonl(*({"text": f"text number {i}"} for i in range(50))).encode())
    for suffix in COMPRESS
}


@settings(deadline=None, max_examples=250)
@given(data=st.data())
def test_damaged_files_give_an_error_or_a_result(tmp_path_factory, data):
    name = data.draw(st.sampled_from([*GOOD, "a.parquet"]))
    folder = tmp_path_factory.mktemp("fuzz")
    if name == "a.parquet":
        pq.write_table(pa.table({"text": [f"text number {i}" for i in range(50)]}), folder / name)
        content = bytearray((folder / name).read_bytes())
    else:
        content = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut" and place:
            del content[place:]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=4))
    (folder / name).write_bytes(content)
    try:
        found = texts(folder / name)
    except ValueError as error:
        assert "\n" not in str(error)
        assert name in str(error)
    else:
        assert all(isinstance(text, str) for text in found)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_missing_inputs(tmp_path):
    with pytest.raises(ValueError, match=r"no corpus was named; give at least one"):
        documents([])
    with pytest.raises(ValueError, match=r"nowhere.txt does not exist; check the path"):
        documents([tmp_path / "nowhere.txt"])
    with pytest.raises(ValueError, match=r"\*\.txt matches no file; check the pattern"):
        documents([tmp_path / "*.txt"])
    with pytest.raises(ValueError, match=r"holds no files at all; a folder is searched for \.a2m \.a3m \.afa \.arrow"):
        documents([tmp_path])
    write(tmp_path / "a.log", "x")
    with pytest.raises(ValueError, match=r"holds only '\.log'; .* glob such as '.*/\*\*/\*\.log'"):
        documents([tmp_path])
    with pytest.raises(ValueError, match=r"split_text 'word' is unknown; choose line, paragraph or file"):
        documents([tmp_path], split_text="word")
    with pytest.raises(ValueError, match=r"encoding_errors 'ignore' is unknown; choose strict or replace"):
        documents([tmp_path], encoding_errors="ignore")


def test_a_store_is_no_folder_of_files(tmp_path):
    write(tmp_path / "manifest.json", "{}")
    write(tmp_path / "train-00000.arrow", "")
    with pytest.raises(ValueError, match="is a prepared store, not a corpus of files"):
        documents([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path):
    write(tmp_path / "a.txt", "x").chmod(0)
    with pytest.raises(ValueError, match="cannot be read"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", b"plain text", r"a\.txt\.gz is not gzip \(it begins with b'plai'\); rename it"),
        ("a.jsonl.zst", b'{"text": "a"}', r"is not zstd"),
        ("a.jsonl.bz2", gzip.compress(b"x", mtime=0)[:1] + b"x", r"is not bzip2"),
        ("a.txt.xz", b"", r"is not xz \(it is empty\)"),
        ("a.parquet", b"text", r"a\.parquet is not Parquet \(it begins with b'text'\)"),
        ("a.parquet", b"PAR1" + b"x" * 100, r"is damaged Parquet after row 0 \(.*\); write it again"),
        ("a.pdf", b"a,b", r"a\.pdf has a format that is not read \(\.pdf\); convert it"),
        ("a.txt", "one".encode("utf-16"), r"a\.txt is UTF-16, not UTF-8; convert it: iconv"),
        ("a.txt", b"one\n\ntw\xff\n", r"a\.txt line 3: byte 0xff at offset 7 of the file is not UTF-8; .*replace"),
        ("a.txt", b"\xef\xbb\xbfab\xffc", r"line 1: byte 0xff at offset 5 of the file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl line 2: byte 0xe9 at offset 24 of"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON \(.*\); repair it \(a \.jsonl has"),
        ("a.jsonl", b'[{"text": "a"}]', r"a\.jsonl line 1 is a JSON array; write one object per line"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', r"line 2 is a JSON string; write one object per line"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"line 1 is not JSON \(Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, r"line 1 is nested too deeply"),
        (
            "a.jsonl",
            b'{"a": 1, "b": "x"}',
            r"line 1 has none of 'text', 'sequence', 'content', 'input_ids'; its columns are 'a', 'b'",
        ),
        ("a.jsonl", b'{"text": "a", "content": "b"}', r"could mean any of 'text', 'content'; its columns are"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', r"a\.jsonl line 2 has no 'text', only 'txt'; name the text"),
        ("a.jsonl", b'{"text": 5}', r"line 1: 'text' is a JSON number, not a string"),
        ("a.jsonl", b'{"text": ["a"]}', r"line 1: 'text' is a JSON array whose item 1 is of type string, but ids"),
        ("a.jsonl", b'{"text": true}', r"line 1: 'text' is a JSON boolean, not a string"),
        ("a.jsonl", b'{"text": "a\\ud800b"}', r"line 1 holds half a character \(\\ud800\); repair it"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as raised:
        texts(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_truncated_and_damaged_compression(tmp_path, suffix):
    lines = "\n".join(str(hash(i) * 2654435761 % 2**32) for i in range(20_000))
    content = COMPRESS[suffix](lines.encode())
    path = write(tmp_path / f"a.txt{suffix}", content[:-3])
    with pytest.raises(
        ValueError, match=r"ends in the middle of its \w+ data, after [\d,]+ bytes of content; it was cut"
    ):
        texts(path)
    with pytest.raises(ValueError, match=r"ends in the middle of its \w+ data"):
        texts(write(path, content[: len(content) // 2]))
    with pytest.raises(ValueError, match=r"holds damaged \w+ data \(.*\) after"):
        texts(write(path, content + b"rubbish"))
    short = r"goes on behind its \w+ data with b'\\n', which is none; remove that"  # too short to be called damaged
    with pytest.raises(ValueError, match=short if suffix in (".gz", ".xz") else "holds damaged"):
        texts(write(path, content + b"\n"))


def test_a_flipped_byte_in_gzip_is_found(tmp_path):
    content = bytearray(gzip.compress(b"".join(b"%d\n" % (i * i) for i in range(10_000))))
    content[-6] ^= 1  # in the checksum
    with pytest.raises(ValueError, match="holds damaged gzip data .*incorrect data check"):
        texts(write(tmp_path / "a.txt.gz", bytes(content)))


def test_encoding_errors_replace(tmp_path):
    assert texts(write(tmp_path / "a.txt", b"on\xff\ntwo"), encoding_errors="replace") == ["on\ufffd", "two"]
    path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud800b \\ud83d\\ude00"}')
    assert texts(path, encoding_errors="replace") == ["a\ufffdb \U0001f600"]
    table = pa.table({"text": pa.array([b"ok", b"\xff"], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", encoding_errors="replace") == ["ok", "\ufffd"]
    with pytest.raises(ValueError, match=r"a\.parquet row 2: byte 0xff at offset 0 of the text is not UTF-8"):
        texts(tmp_path / "a.parquet")


def test_parquet_strings_that_are_not_utf8(tmp_path):
    array = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())  # Arrow does not look
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 2: byte 0xff at offset 0"):
        texts(tmp_path / "a.parquet")


def test_parquet_columns(tmp_path):
    pq.write_table(pa.table({"a": ["x"], "text": [[1.5]]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"column 'text' holds list<.*>, neither text nor lists of ids; of 'a', 'text' name another"
    ):
        texts(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has no column 'b', only 'a', 'text'; name one of them with --column"):
        texts(tmp_path / "a.parquet", column="b")
    pq.write_table(pa.table({"ids": [[1]], "length": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"has none of .*; its columns are 'ids', 'length'"):
        texts(tmp_path / "b.parquet")


def test_truncated_parquet(tmp_path):
    pq.write_table(pa.table({"text": [str(i) for i in range(10_000)]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(ValueError, match="is damaged Parquet"):
        texts(write(tmp_path / "a.parquet", content[: len(content) // 2]))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared corpora are not here")
def test_real_files():
    corpus = Corpus([SHARED / "mix10m" / "valid.jsonl.gz", SHARED / "sequences" / "proteins.parquet"])
    found = list(corpus)
    with gzip.open(SHARED / "mix10m" / "valid.jsonl.gz", "rt") as lines:
        expected = [json.loads(line)["text"] for line in lines]
    expected += pq.read_table(SHARED / "sequences" / "proteins.parquet").column("sequence").to_pylist()
    assert [document.text for document in found] == expected
    assert corpus.empty_documents == 0
