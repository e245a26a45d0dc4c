"""Files elsewhere, saved data sets and the Hub's: without a network, by fsspec's memory and by local folders."""

import gzip
import json
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlm_pytorch.data.corpus import Corpus, documents
from mlm_pytorch.data.remote import shown_url


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.rm("/", recursive=True) if system.ls("/") else None
    yield system
    system.rm("/", recursive=True) if system.ls("/") else None


def texts(*paths, **options):
    return [document.text for document in documents(list(paths), **options)]


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as raised:
        list(documents([path], **options))
    assert "\n" not in str(raised.value)


def stream_of(table):
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue().to_pybytes()


# -- URLs --------------------------------------------------------------------------------------------------------------


def test_files_folders_and_globs_elsewhere(memory):
    memory.pipe("/c/a.txt", b"one\ntwo")
    memory.pipe("/c/deep/b.jsonl.gz", gzip.compress(b'{"text": "three"}\n'))
    memory.pipe("/c/deep/c.xyz", b"?")
    memory.pipe("/c/d.arrow", stream_of(pa.table({"text": ["five"]})))
    with memory.open("/c/e.parquet", "wb") as out:
        pq.write_table(pa.table({"text": ["six", "seven"]}), out)
    corpus = Corpus(["memory://c"])
    assert [(document.text, document.source) for document in corpus] == [
        ("one", "a.txt"),
        ("two", "a.txt"),
        ("five", "d.arrow"),
        ("six", "e.parquet"),
        ("seven", "e.parquet"),
        ("three", "b.jsonl.gz"),
    ]
    assert [path.name for path in corpus.skipped_files] == ["c.xyz"]
    assert corpus.bytes_done == corpus.bytes_total == memory.du("/c") - 1
    assert not any(file.is_stream for file in corpus.files)
    assert texts("memory://c/*.txt", "memory://c/deep/b.jsonl.gz") == ["one", "two", "three"]
    assert texts("memory://c/**/*.gz") == ["three"]
    assert texts("memory://c/dee*") == ["three"]


def test_what_is_not_elsewhere(memory):
    refused("memory://c/a.txt", r"memory://c/a\.txt does not exist; check the URL")
    refused("memory://c/*.txt", r"memory://c/\*\.txt matches no file; check the pattern")
    refused("nosuch://a.txt", r"nosuch://a\.txt cannot be read \(Protocol not known: nosuch\)")
    memory.pipe("/c/a.txt.gz", gzip.compress(b"one\ntwo")[:-3])
    refused("memory://c/a.txt.gz", r"memory://.*a\.txt\.gz ends in the middle of its gzip data")
    memory.pipe("/d/a.xyz", b"?")
    refused("memory://d", r"/d holds only '\.xyz'; a folder is searched for")


def test_a_protocol_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused("s3://bucket/a.txt", r"s3://bucket/a\.txt cannot be read \(.*s3fs.*\)")


def test_a_connection_that_breaks(memory, monkeypatch):
    memory.pipe("/a.txt", b"one\ntwo")
    corpus = Corpus(["memory://a.txt"])
    memory.rm("/a.txt")
    with pytest.raises(ValueError, match=r"memory://a\.txt cannot be read \(.*\)"):
        list(corpus)
    memory.pipe("/a.txt", b"one\ntwo")
    corpus = Corpus(["memory://a.txt"])

    def broken(self, size=-1):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", broken)
    with pytest.raises(ValueError, match=r"memory://a\.txt broke off \(reset by peer\); try again"):
        list(corpus)


def test_messages_show_no_secrets():
    assert shown_url("https://me:secret@host/a.txt?signature=secret#x") == "https://host/a.txt"
    inside = "zip://a.txt::https://me:secret@host/a.zip?signature=secret"
    assert shown_url(inside) == "zip://a.txt::https://host/a.zip"


# -- saved by datasets -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(10)], "n": range(10)})
    data.save_to_disk(folder / "one", num_shards=3)
    data.select([3, 1]).save_to_disk(folder / "selected")
    datasets.DatasetDict(train=data, test=data).save_to_disk(folder / "splits")
    datasets.DatasetDict(valid=data, test=data).save_to_disk(folder / "untrained")
    datasets.DatasetDict(valid=data).save_to_disk(folder / "single")
    datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]}).save_to_disk(folder / "ids")
    return folder


def test_folders_saved_by_datasets(saved):
    rows = [f"row {i}" for i in range(10)]
    assert texts(saved / "one") == rows
    assert texts(saved / "selected") == ["row 3", "row 1"]
    assert texts(saved / "single") == rows
    corpus = Corpus([saved / "splits"])
    assert [document.text for document in corpus] == rows
    assert [path.parent.name for path in corpus.skipped_files] == ["test"]
    assert [document.ids.tolist() for document in documents([saved / "ids"])] == [[1, 2], [3]]


def test_folders_saved_by_datasets_elsewhere_and_inside_others(saved, memory, tmp_path):
    memory.put(str(saved / "splits"), "/splits", recursive=True)
    assert texts("memory://splits") == [f"row {i}" for i in range(10)]
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "data").symlink_to(saved / "one")
    assert texts(tmp_path) == ["first", *(f"row {i}" for i in range(10))]
    assert len(texts(tmp_path / "data")) == 10


def test_what_is_wrong_with_a_saved_folder(saved, tmp_path):
    refused(saved / "untrained", r"dataset_dict\.json lists 'valid', 'test', none of them 'train'; name")
    (tmp_path / "dataset_info.json").write_text("{}")
    for state, message in [
        ("{", r"state\.json is not JSON \(.*\); save the data set again"),
        ("[]", r"state\.json is not a JSON object"),
        ("{}", r"state\.json is no list of shards \(KeyError\('_data_files'\)\); save"),
        ('{"_data_files": []}', r"state\.json lists no shards"),
        ('{"_data_files": [{"filename": 5}]}', r"state\.json lists no shards"),
        ('{"_data_files": [{"filename": "a.arrow"}]}', r"lacks 'a\.arrow', which its state\.json lists; copy"),
        ('{"_indices_data_files": [1], "_data_files": []}', r"list of indices; load the data set, flatten_indices\(\)"),
    ]:
        (tmp_path / "state.json").write_text(state)
        refused(tmp_path, message)
    (tmp_path / "state.json").unlink()
    (tmp_path / "dataset_dict.json").write_text('{"splits": 5}')
    refused(tmp_path, r"dataset_dict\.json is no list of splits")


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A folder that `datasets` loads as it loads a data set of the Hub."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": [f"{split} {i}" for i in range(600)]}), folder / f"{split}.parquet")
    return folder


def test_data_sets_by_name(hub):
    corpus = Corpus([f"hub:{hub}"])
    assert corpus.bytes_total is None
    assert not corpus.files[0].is_stream
    assert [(document.text, document.source) for document in corpus] == [(f"train {i}", str(hub)) for i in range(600)]
    assert texts(f"hub:{hub}::test") == [f"test {i}" for i in range(600)]
    assert len(list(corpus)) == 600  # again


def test_what_is_wrong_with_a_data_set(hub, monkeypatch):
    refused(f"hub:{hub}::nosuch", r"hub:.*:nosuch cannot be opened \(.*nosuch.*\); check its name")
    refused(f"hub:{hub}:nosuch", r"hub:.*:nosuch cannot be opened")
    refused(f"hub:{hub}/nowhere", r"cannot be opened")
    refused("hub:", r"hub: is no data set; write hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT")
    refused("hub:a:b:c:d", r"hub:a:b:c:d is no data set")
    refused(f"hub:{hub}", r"has no column 'body', only 'text'", column="body")
    content = (hub / "train.parquet").read_bytes()
    (hub / "train.parquet").write_bytes(content[:200] + b"\xff" * 200 + content[400:])
    refused(f"hub:{hub}", r"hub:.* cannot be (read after row 0|opened) \(.*\)")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(f"hub:{hub}", r"needs the package datasets, which is not installed; run pip install '\.\[hub\]' in")


def test_nothing_remote_is_imported_unless_named(tmp_path):
    import subprocess

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}))
    probe = (
        "import sys; from mlm_pytorch.data.corpus import documents; list(documents([sys.argv[1]])); "
        "print({'fsspec', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules) or 'none')"
    )
    run = subprocess.run(
        [sys.executable, "-c", probe, tmp_path / "a.jsonl"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() in ("none", "{'fsspec'}")  # torch itself loads fsspec where it is installed
