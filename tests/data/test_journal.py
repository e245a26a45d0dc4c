"""Whatever stops a preparation, wherever it is: the same command goes on and ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import contents

from mlm_pytorch.data import encode, holdout, journal, manifest, partial, store
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.journal import JOURNAL, State, read_journal, write_journal
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore

TEXTS = [f"the cat number {i % 170} sat on the mat, the dog on number {i * i}" for i in range(200)]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_PIECES", 30)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 700)
    monkeypatch.setattr(holdout, "SPARES", 3)


@pytest.fixture
def corpus(tmp_path):
    """Three files, of which one is empty, with duplicates and empty documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, texts in enumerate((TEXTS[:90], [], [*TEXTS[80:], "", *TEXTS[:5], " "])):
        lines = "".join(json.dumps({"text": text, "source": text[-3:]}) + "\n" for text in texts)
        (folder / f"{number}.jsonl").write_text(lines)
    (tmp_path / "valid.txt").write_text("\n".join([*TEXTS[3:40], "another text", "another text"]))
    return folder


class KilledError(BaseException):
    """Stands for a kill: no clean-up runs in these tests."""


def killed_at(patch, moment):
    """Make the call number `moment` of all that changes files the last thing that happens, done by half. Returns a
    function that says how many there were.
    """
    calls = 0

    def killing(module, name, half):
        real = getattr(module, name)

        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                half(*arguments)
                raise KilledError
            return real(*arguments, **options)

        patch.setattr(module, name, call)

    def half_a_file(path, content):
        path.write_bytes(bytes(content)[: len(content) // 2])

    killing(store, "write_file", half_a_file)
    killing(manifest, "write_file", half_a_file)
    killing(journal.np, "savez", lambda file, **_: file.write(b"half"))
    for module, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (partial.shutil, "rmtree")):
        killing(module, name, lambda *_: None)
    trim = partial._trim
    patch.setattr(partial, "_trim", lambda *arguments, last=False: None if last else trim(*arguments))
    return lambda: calls


OPTIONS = {
    "held out": {"valid_share": 0.2},
    "files held out, windows": {"valid": ["valid.txt"], "long_documents": "windows", "overlap": 3, "seq_len": 20},
    "no duplicates": {"valid": ["valid.txt"], "drop_duplicates": True},
    "trained": {"tokenizer": None, "vocab_size": 280, "drop_duplicates": True, "long_documents": "truncate"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_killed_at_every_moment(tokenizer, corpus, tmp_path, small_shards, options):
    options = {"tokenizer": tokenizer, "workers": 1, **options}
    if "valid" in options:
        options["valid"] = [tmp_path / "valid.txt"]
    expected_report = prepare([corpus], tmp_path / "expected", **options)
    expected, out = contents(tmp_path / "expected"), tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        calls = killed_at(patch, None)
        prepare([corpus], out, **options)
        num_calls = calls()
        shutil.rmtree(out)
    resumed = []
    for moment in sorted({*np.linspace(1, num_calls, 10).astype(int).tolist(), num_calls - 1, num_calls - 2}):
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, moment)
            with pytest.raises(KilledError):
                prepare([corpus], out, **options)
        report = prepare([corpus], out, **options)
        resumed.append(report.resumed_documents)
        for name in ("documents", "empty_documents", "duplicate_documents", "tokens", "tokenizer"):
            assert getattr(report, name) == getattr(expected_report, name)
        assert contents(out) == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "expected", "store", "valid.txt"]
        shutil.rmtree(out)
    assert len(set(resumed)) > 4


COMMAND = """
import sys, time
from pathlib import Path
from mlm_pytorch.data import encode, holdout, store
from mlm_pytorch.data.prepare import prepare
store.SHARD_PIECES, encode.BATCH_CHARACTERS, holdout.SPARES = 30, 700, 3
slow = lambda state: time.sleep(0.01)
report = prepare([sys.argv[1]], sys.argv[2], vocab_size=280, valid_share=0.2, progress=slow)
print(report.resumed_documents)
"""


def test_processes_killed_at_random_moments(corpus, tmp_path, small_shards):
    out, partial_folder = tmp_path / "store", tmp_path / ".store.partial"
    command = [sys.executable, "-c", COMMAND, str(corpus), str(out)]
    generator = random.Random(os.getpid())
    for _ in range(2):
        process = subprocess.Popen(command)
        before = (partial_folder / JOURNAL).stat().st_mtime_ns if (partial_folder / JOURNAL).exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (partial_folder / JOURNAL).exists() and (partial_folder / JOURNAL).stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) > 0
    resumed = contents(out)
    prepare([corpus], out, vocab_size=280, valid_share=0.2)
    assert resumed == contents(out)


def interrupt_after(num_calls):
    def progress(state):
        nonlocal num_calls
        num_calls -= 1
        if num_calls == 0:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def interrupted(tokenizer, corpus, tmp_path, small_shards):
    """A preparation that the keyboard stopped, and how to give the command again."""
    notices = []

    def command(**options):
        return prepare([corpus], tmp_path / "store", notice=notices.append, **{"tokenizer": tokenizer, **options})

    with pytest.raises(KeyboardInterrupt):
        command(progress=interrupt_after(12))
    assert notices == ["stopped; the same command goes on from here"]
    notices.clear()
    return command, notices, tmp_path / ".store.partial"


def test_the_keyboard_keeps_what_is_complete(interrupted, tmp_path):
    command, notices, folder = interrupted
    names = {path.name for path in folder.iterdir()}
    assert names >= {"journal.npz", "train-00000.arrow"}
    report = command()
    assert report.resumed_documents > 50
    assert notices == [
        f"going on after {report.resumed_documents} documents, where an earlier preparation was interrupted"
    ]


def test_consumed_files_are_not_read_again(interrupted, corpus, monkeypatch):
    command, _, _ = interrupted
    read = []
    real = Corpus._read
    monkeypatch.setattr(Corpus, "_read", lambda self, file: read.append(file.source) or real(self, file))
    assert command().resumed_documents > 90
    assert read == ["2.jsonl"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seq_len": 100}, "it was of another set of options"),
        ({"split_text": "file"}, "it was of another corpus"),
        ({"valid_share": 0.5}, "it was of another set of options"),
        ({"tokenizer": None}, "it was of another tokenizer"),
    ],
)
def test_other_input_starts_over(interrupted, options, reason, tmp_path, corpus, tokenizer):
    command, notices, _ = interrupted
    assert command(**options).resumed_documents == 0
    assert len(notices) == 1
    assert notices[0].startswith(f"starting over: an earlier preparation of {tmp_path / 'store'} was interrupted, but")
    assert notices[0].endswith(reason)
    prepare([corpus], tmp_path / "expected", **{"tokenizer": tokenizer, **options})
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_a_changed_file_starts_over(interrupted, corpus):
    command, notices, _ = interrupted
    os.utime(corpus / "1.jsonl", ns=(1, 1))
    assert command().resumed_documents == 0
    assert notices[0].endswith("it was of another corpus")


@pytest.mark.parametrize("damage", ["cut", "bit", "not zip", "shard"])
def test_a_damaged_journal_starts_over(interrupted, damage):
    command, notices, folder = interrupted
    content = (folder / JOURNAL).read_bytes()
    if damage == "cut":
        (folder / JOURNAL).write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        (folder / JOURNAL).write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    elif damage == "not zip":
        (folder / JOURNAL).write_bytes(b"x" * 100)
    else:
        (folder / "train-00000.arrow").write_bytes(b"x")
    assert command().resumed_documents == 0
    assert "was interrupted, but what it left is damaged (" in notices[0]


def test_wrong_input_before_the_first_shard_leaves_nothing(interrupted, corpus, tmp_path):
    command, _, _ = interrupted
    (corpus / "0.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        command()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "valid.txt"]


def test_a_file_that_cannot_be_read_for_a_while_costs_nothing(tokenizer, corpus, tmp_path, small_shards, monkeypatch):
    notices, out = [], tmp_path / "store"
    read = Corpus._read

    def stale(self, file):
        if file.source == "2.jsonl":
            raise ValueError(f"{file.label} cannot be read (Stale file handle); check the path and its permissions")
        return read(self, file)

    for _ in range(2):  # and again, without a new shard in between
        with monkeypatch.context() as patch:
            patch.setattr(Corpus, "_read", stale)
            with pytest.raises(ValueError, match="cannot be read"):
                prepare([corpus], out, tokenizer=tokenizer, notice=notices.append)
        assert notices[-1] == "stopped; the same command goes on from here, or starts over where its input has changed"
    assert prepare([corpus], out, tokenizer=tokenizer).resumed_documents > 30
    prepare([corpus], tmp_path / "expected", tokenizer=tokenizer)
    assert contents(out) == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "expected", "store", "valid.txt"]


def test_wrong_input_that_was_mended_starts_over(tokenizer, corpus, tmp_path, small_shards):
    notices, right = [], (corpus / "2.jsonl").read_text()
    (corpus / "2.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    (corpus / "2.jsonl").write_text(right)
    assert prepare([corpus], tmp_path / "store", tokenizer=tokenizer, notice=notices.append).resumed_documents == 0
    assert notices[0].endswith("it was of another corpus")


def test_a_finished_preparation_leaves_its_successors_folder_alone(tokenizer, corpus, tmp_path, monkeypatch):
    """Another process may begin as soon as the store is in place."""
    put, successor = partial._put_in_place, tmp_path / ".store.partial"

    def put_and_begin_another(*arguments):
        put(*arguments)
        successor.mkdir()
        for name in (manifest.LOCK, "train-00000.arrow"):
            (successor / name).touch()

    monkeypatch.setattr(partial, "_put_in_place", put_and_begin_another)
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert sorted(path.name for path in successor.iterdir()) == [manifest.LOCK, "train-00000.arrow"]


def test_a_folder_that_was_put_in_place_while_its_lock_was_awaited(tokenizer, corpus, tmp_path, monkeypatch):
    successor = tmp_path / ".store.partial"

    def lock_late(*_):
        shutil.rmtree(successor)
        successor.mkdir()
        (successor / "train-00000.arrow").touch()
        return True

    monkeypatch.setattr(partial, "lock_for", lock_late)
    with pytest.raises(ValueError, match="store is being prepared by another process; wait for it or choose another"):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert [path.name for path in successor.iterdir()] == ["train-00000.arrow"]


def test_pipes_start_over(tmp_path, small_shards, tokenizer, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = "\n".join(TEXTS).encode()
    for _ in range(2):  # the second one finds nothing that the first one left
        writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write({content!r})"])
        with pytest.raises(KeyboardInterrupt):
            prepare([pipe], tmp_path / "store", tokenizer=tokenizer, progress=interrupt_after(15))
        writer.kill()
        writer.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]


def test_a_damaged_trained_tokenizer(corpus, tmp_path, small_shards):
    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], tmp_path / "store", vocab_size=280, progress=interrupt_after(3))
    saved = tmp_path / ".store.partial" / "tokenizer" / "tokenizer.json"
    saved.write_text(saved.read_text().replace('"lstrip": true', '"lstrip": false'))
    notices = []
    assert prepare([corpus], tmp_path / "store", vocab_size=280, notice=notices.append).resumed_documents == 0
    assert notices[0].endswith("what it left is damaged (tokenizer/tokenizer.json is missing or another)")
    prepare([corpus], tmp_path / "expected", vocab_size=280)
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_a_log_that_lost_its_end_starts_over(interrupted):
    command, notices, folder = interrupted
    (folder / "duplicates" / "texts.bin").write_bytes(b"x")
    assert command().resumed_documents == 0
    assert notices[0].endswith("what it left is damaged (duplicates/texts.bin is missing or another)")


def test_opening_a_store_that_is_being_prepared(corpus, tokenizer, tmp_path):
    seen = []

    def look(state):
        with pytest.raises(ValueError, match="store is not yet a store: another process is preparing it; wait for"):
            TokenStore.open(tmp_path / "store")
        seen.append(state)

    prepare([corpus], tmp_path / "store", tokenizer=tokenizer, progress=look)
    assert seen
    TokenStore.open(tmp_path / "store")


@settings(deadline=None, max_examples=40)
@given(
    facts=st.dictionaries(st.text(), st.integers(0, 2**64 - 1) | st.text() | st.lists(st.none() | st.booleans())),
    numbers=st.lists(st.integers(0, 2**64 - 1)),
)
def test_state_round_trip(tmp_path_factory, facts, numbers):
    folder = tmp_path_factory.mktemp("journal")
    part = State(facts, {"numbers": np.array(numbers, np.uint64)})
    state = State({"before": 1}).with_part("old", State({}, {"gone": np.zeros(2)})).with_part("old", part)
    write_journal(folder, {"who": ["me", None]}, state, {})
    found, shards, reason = read_journal(folder, {"who": ("me", None)})
    assert (found.facts, shards, reason) == (state.facts, frozenset(), "")
    assert found.part("old").facts == facts
    assert list(found.arrays) == ["old.numbers"]
    assert found.part("old").arrays["numbers"].tolist() == numbers
    assert "new" not in found
    assert read_journal(folder, {"who": 1})[2] == "it was of another who"
