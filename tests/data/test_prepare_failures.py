"""A preparation that fails or is interrupted leaves nothing half-written, and what was there before."""

import errno
import fcntl
from pathlib import Path

import pytest
from stores import contents, listed, sentences, splits, write_jsonl

from mlm_pytorch.data import manifest
from mlm_pytorch.data import store as store_module
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 2}, r"seq_len 2 leaves no room beside the 2 tokens that frame a piece"),
        ({"seq_len": 20_000_000}, r"seq_len 20000000 is more than the 16,777,216 tokens that a shard of a store holds"),
        ({"valid_share": 1.0}, r"valid_share 1.0 is not a share; choose at least 0 and less than 1"),
        ({"valid_share": 0.1, "valid": ["x"]}, r"valid files and valid_share 0.1 are both given"),
        ({"workers": 0}, r"workers 0 is too few; choose at least 1"),
        ({"vocab_size": 300}, r"vocab_size 300 is for training a tokenizer, but one was given"),
        ({"valid": ["nowhere.txt"]}, r"nowhere.txt does not exist"),
    ],
)
def test_wrong_options(tokenizer, tmp_path, options, message):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    with pytest.raises(ValueError, match=message):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer, **options)
    assert listed(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("given_tokenizer", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.jsonl holds no text \(no documents\); check the path"),
        (b'{"text": " "}\n' * 3, r"a.jsonl holds no text \(only 3 empty documents\)"),
        (b'{"text": "good"}\n' * 500 + b"{", r"line 501 is not JSON"),
    ],
)
def test_a_wrong_corpus_leaves_nothing(tokenizer, tmp_path, content, message, given_tokenizer):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare([tmp_path / "a.jsonl"], tmp_path / "store", tokenizer=tokenizer if given_tokenizer else None)
    assert listed(tmp_path) == ["a.jsonl"]


def test_an_error_leaves_the_old_store(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(50))
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    before = contents(tmp_path / "store")
    corpus.write_text('{"text": "a"}\n{')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert contents(tmp_path / "store") == before
    write_jsonl(corpus, ["quite another corpus"])
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert splits(tmp_path / "store", tokenizer)[0] == ["quite another corpus"]
    assert listed(tmp_path) == ["a.jsonl", "store"]


def test_what_is_not_ours_is_refused(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    with pytest.raises(ValueError, match=r"a.jsonl is a file, not a folder"):
        prepare([corpus], corpus, tokenizer=tokenizer)
    out = tmp_path / "thesis"
    out.mkdir()
    prepare([corpus], out, tokenizer=tokenizer)  # empty, so it may be used
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis holds 'notes.txt' and is not a store that could be replaced"):
        prepare([corpus], out, tokenizer=tokenizer)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"thesis is not empty and is not a store"):
        prepare([corpus], out, tokenizer=tokenizer)
    below = corpus / "store"
    with pytest.raises(ValueError, match=r"cannot be written \(.*\); choose another place"):
        prepare([corpus], below, tokenizer=tokenizer)


def test_two_at_once(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    (tmp_path / ".store.partial").mkdir()
    with (tmp_path / ".store.partial" / "preparing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="store is being prepared by another process; wait"):
            prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert listed(tmp_path) == ["a.jsonl", "store"]


@pytest.mark.parametrize("place", ["train-00000.arrow", "train-00001.arrow", "manifest.json", "tokenizer"])
def test_full_disk(tokenizer, tmp_path, monkeypatch, place):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(200))
    monkeypatch.setattr(store_module, "SHARD_PIECES", 100)
    prepare([corpus], tmp_path / "expected", tokenizer=tokenizer)

    def full(path, *_):
        path.touch()  # half-written
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    real = manifest.write_file
    with monkeypatch.context() as patch:
        if place == "tokenizer":
            patch.setattr(Path, "write_bytes", full)
        else:
            for module in (store_module, manifest):
                patch.setattr(
                    module, "write_file", lambda path, *rest: (full if path.name == place else real)(path, *rest)
                )
        with pytest.raises(OSError, match=r"the disk of .* is full; free some space") as raised:
            prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert "\n" not in str(raised.value)
    if place == "train-00000.arrow":
        assert "(nothing was left behind)" in str(raised.value)
        assert listed(tmp_path) == ["a.jsonl", "expected"]
    else:
        assert "give the same command again, which goes on from here" in str(raised.value)
        assert set(listed(tmp_path / ".store.partial")) >= {"journal.npz", "train-00000.arrow"}
        assert not set(listed(tmp_path / ".store.partial")) & {"train-00001.arrow", "manifest.json"}
        with pytest.raises(ValueError, match="store is not yet a store: preparing it was interrupted; give that mlm"):
            TokenStore.open(tmp_path / "store")
    report = prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert (report.resumed_documents > 0) == (place != "train-00000.arrow")
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_interrupted_by_the_keyboard(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(200))

    def interrupt(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer, progress=interrupt)
    assert listed(tmp_path) == ["a.jsonl"]


def test_killed_between_the_two_renames(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(20))
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    before = contents(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / ".store.replaced")
    corpus.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert contents(tmp_path / "store") == before
    assert listed(tmp_path) == ["a.jsonl", "store"]


def test_what_others_put_beside_stays(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "mine.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"\.store\.partial holds 'mine.txt', which no preparation wrote; move it away"
    ):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert (tmp_path / ".store.partial" / "mine.txt").read_text() == "x"
