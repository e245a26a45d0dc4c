"""Corpus -> store: every token once, whatever the corpus, the options and the number of workers."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Ids, contents, documents_of, listed, pieces, sentences, splits, write_jsonl

from mlm_pytorch.data import duplicates, encode, holdout, manifest, progress
from mlm_pytorch.data import store as store_module
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.mixture import Mixture
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.progress import PrepareProgress
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=15),
    seq_len=st.integers(3, 40),
    workers=st.integers(1, 3),
    batch=st.integers(1, 100),
)
def test_every_token_of_every_document_exactly_once(tokenizer, tmp_path_factory, texts, seq_len, workers, batch):
    folder = tmp_path_factory.mktemp("law")
    corpus = write_jsonl(folder / "a.jsonl", texts)
    kept = [text for text in texts if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_CHARACTERS", batch)
        options = {"tokenizer": tokenizer, "seq_len": seq_len, "workers": workers, "valid_share": 0}
        if not kept:
            with pytest.raises(ValueError, match="holds no text"):
                prepare([corpus], folder / "store", **options)
            return
        report = prepare([corpus], folder / "store", **options)
    limit = seq_len - 2
    expected = [ids[i : i + limit] for ids in tokenizer.encode_batch(kept) for i in range(0, len(ids), limit)]
    assert pieces(folder / "store") == expected
    assert (report.documents, report.empty_documents) == (len(kept), len(texts) - len(kept))
    assert (report.pieces, report.tokens) == (len(expected), sum(map(len, expected)))
    assert report.characters == sum(map(len, kept))
    assert report.bytes == sum(len(text.encode()) for text in kept)
    assert report.split_documents == sum(len(ids) > limit for ids in tokenizer.encode_batch(kept))


def test_report_and_store(tokenizer, tmp_path):
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", sentences(300))
    (tmp_path / "corpus" / "notes.log").write_text("not read")
    report = prepare([tmp_path / "corpus"], tmp_path / "store", tokenizer=tokenizer, seq_len=32)
    store, held_out = TokenStore.open(tmp_path / "store"), TokenStore.open(tmp_path / "store", "valid")
    assert report.pieces == len(store) + len(held_out)
    assert report.tokens == store.num_tokens + held_out.num_tokens
    assert (report.valid_pieces, report.valid_tokens) == (len(held_out), held_out.num_tokens)
    assert report.skipped_files == (tmp_path / "corpus" / "notes.log",)
    assert report.valid_share == report.valid_documents / 300
    made = report.tokenizer
    assert (made.documents, made.tokens, made.characters) == (report.documents, report.tokens, report.characters)
    assert made.characters_per_token == report.characters / report.tokens > 1
    assert 0 < made.used_share < 1 and made.tokens_per_word > 1
    assert (made.unknown_rate, report.tokenizer_trained, report.num_tokens) == (
        0,
        False,
        tokenizer.special.num_tokens,
    )
    assert (store.seq_len, store.tokenizer_fingerprint, store.source(0)) == (32, tokenizer.fingerprint, "a.jsonl")
    assert load_tokenizer(store.tokenizer_folder).fingerprint == tokenizer.fingerprint
    assert json.loads((store.tokenizer_folder / "tokenizer_config.json").read_text())["model_max_length"] == 32
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "manifest.json",
        "tokenizer",
        "train-00000.arrow",
        "valid-00000.arrow",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store"]


def test_the_same_bytes_however_many_workers(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(holdout, "MAX_VALID_DOCUMENTS", 5)
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(300))
    for workers in (1, 3):
        prepare([corpus], tmp_path / f"store{workers}", tokenizer=tokenizer, workers=workers, valid_share=0.3)
    assert contents(tmp_path / "store1") == contents(tmp_path / "store3")


def test_the_hash_of_a_splits_text(tokenizer, tmp_path):
    texts, held = sentences(60), ["the mat", "the mat", "ein Ägypter"]

    def hashes(name, texts, held, **options):
        corpus, valid = (
            write_jsonl(tmp_path / f"{name}.jsonl", texts),
            write_jsonl(tmp_path / f"{name}.valid.jsonl", held),
        )
        prepare([corpus], tmp_path / name, valid=[valid], **options)
        return {split: info.text_hash for split, info in manifest.Manifest.read(tmp_path / name).splits.items()}

    def expected(texts):
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        return f"{sum(int.from_bytes(digest, 'little') for digest in digests) % 2**64:016x}"

    there = hashes("a", texts, held, tokenizer=tokenizer)
    assert there == {"train": expected(texts), "valid": expected(held)}
    # Whatever order, tokenizer and piece length; not whatever the number of copies.
    assert hashes("b", texts[::-1], held[::-1], tokenizer_kind="bytes", seq_len=16) == there
    assert hashes("c", texts, held[1:], tokenizer=tokenizer)["valid"] != there["valid"]


def test_tokenizer_trained_on_the_way(tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(300))
    report = prepare([corpus], tmp_path / "store", vocab_size=280)
    assert report.tokenizer_trained
    assert report.num_tokens == 280 == TokenStore.open(tmp_path / "store").special.num_tokens
    found = documents_of(tmp_path / "store", "train", load_tokenizer(tmp_path / "store" / "tokenizer"))
    held = documents_of(tmp_path / "store", "valid", load_tokenizer(tmp_path / "store" / "tokenizer"))
    assert sorted(found + held) == sorted(sentences(300))


def test_standard_input_is_spooled_for_training(tmp_path):
    program = "import sys; from mlm_pytorch.data.prepare import prepare; print(prepare(['-'], sys.argv[1]).documents)"
    given_bytes = "\n".join(sentences(50)).encode()
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    result = subprocess.run(command, input=given_bytes, capture_output=True, check=True)
    assert result.stdout.decode().strip() == "50"
    assert listed(tmp_path) == ["store"]


def test_unknown_tokens_are_counted(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    corpus = write_jsonl(tmp_path / "a.jsonl", ["the cat", "the dog", "the \u200b", "\u200b"])
    report = prepare([corpus], tmp_path / "store", tokenizer=load_tokenizer(tmp_path / "tokenizer"), valid_share=0)
    assert (report.documents, report.empty_documents) == (3, 1)  # a zero-width space has no token
    assert (report.tokenizer.unknown_tokens, report.tokenizer.unknown_rate) == (1, 0.2)


def test_progress(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 5000)
    corpus = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in sentences(3000))
    corpus.write_bytes(gzip.compress(lines.encode()))
    seen: list[PrepareProgress] = []
    report = prepare([corpus], tmp_path / "store", progress=seen.append)
    assert [state.stage for state in seen[:3]] == ["tokenizer", "tokenizer", "training"]
    assert seen[2].documents == 3000 and seen[2].seconds_left_estimate is None
    stored = [state for state in seen if state.stage == "store"]
    assert len(stored) > 10
    for name in ("bytes_done", "documents", "tokens"):
        values = [getattr(state, name) for state in stored]
        assert values == sorted(values)
    assert (stored[-1].bytes_done, stored[-1].documents, stored[-1].tokens) == (
        corpus.stat().st_size,
        3000,
        report.tokens,
    )
    assert {state.bytes_total for state in seen} == {corpus.stat().st_size}


def test_the_tokenizers_variable_is_restored(tokenizer, tmp_path, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


@pytest.mark.skipif(not SHARED.exists(), reason="the shared corpora are not here")
def test_real_corpora(tmp_path):
    tokenizer = load_tokenizer(SHARED / "mix10m" / "tokenizer-16k")
    report = prepare([SHARED / "mix10m" / "valid.jsonl.gz"], tmp_path / "store", tokenizer=tokenizer, valid_share=0)
    with gzip.open(SHARED / "mix10m" / "valid.jsonl.gz", "rt") as lines:
        encoded = tokenizer.encode_batch([json.loads(line)["text"] for line in lines])
    store = TokenStore.open(tmp_path / "store")
    assert np.concatenate([store.piece(i) for i in range(len(store))]).tolist() == list(chain.from_iterable(encoded))
    assert report.documents == len(encoded)
    report = prepare([SHARED / "sequences" / "proteins.parquet"], tmp_path / "proteins", tokenizer=tokenizer)
    assert (report.documents, report.characters) == (10_000, 3_353_645)


@settings(deadline=None, max_examples=25)
@given(
    numbers=st.lists(st.integers(0, 40), min_size=2, max_size=80),
    source=st.integers(0, 30),
    batches=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 30)), min_size=2, max_size=2),
    share=st.sampled_from([0, 0.3, 0.9]),
    most=st.integers(1, 10),
    rule=st.sampled_from(["split", "truncate", "windows"]),
    drop=st.booleans(),
)
def test_the_same_bytes_wherever_batches_end(
    tokenizer, tmp_path_factory, numbers, source, batches, share, most, rule, drop
):
    folder = tmp_path_factory.mktemp("law")
    texts = [
        {"text": f"{'the cat ' * (number % 7)}{number}", "source": "s" * (number % 9 * source)} for number in numbers
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    options = {"long_documents": rule, "overlap": 2 if rule == "windows" else 0, "drop_duplicates": drop}
    stores = []
    for number, (characters, documents) in enumerate(batches):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode, "BATCH_CHARACTERS", characters)
            patch.setattr(encode, "BATCH_DOCUMENTS", documents)
            patch.setattr(holdout, "MAX_VALID_DOCUMENTS", most)
            patch.setattr(holdout, "MAX_COPIES", 2)
            patch.setattr(store_module, "SHARD_PIECES", 11)
            patch.setattr(store_module, "SHARD_SOURCE_BYTES", 200)
            out = folder / str(number)
            prepare([folder / "a.jsonl"], out, tokenizer=tokenizer, valid_share=share, workers=1, seq_len=9, **options)
        stores.append(contents(out))
    assert stores[0] == stores[1]


@settings(deadline=None, max_examples=25)
@given(
    numbers=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    valid_numbers=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=5),
    run=st.integers(1, 50),
)
def test_duplicates(tokenizer, tmp_path_factory, numbers, valid_numbers, run):
    folder = tmp_path_factory.mktemp("law")
    corpus = [write_jsonl(folder / "a.jsonl", [f"cat {number}" for number in numbers])]
    options = {"tokenizer": tokenizer, "valid_share": 0}
    if valid_numbers is not None:
        valid = write_jsonl(folder / "b.jsonl", [f"cat {number}" for number in valid_numbers])
        options = {"tokenizer": tokenizer, "valid": [valid]}
    expected_held = list(dict.fromkeys(valid_numbers or []))
    expected = [number for number in dict.fromkeys(numbers) if number not in expected_held]
    repeats = len(numbers) + len(valid_numbers or []) - len(expected) - len(expected_held)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "RUN_DOCUMENTS", run)
        report = prepare(corpus, folder / "all", **options)
        assert (report.duplicate_documents, report.duplicates_dropped) == (repeats, False)
        assert report.documents == len(numbers) + len(valid_numbers or [])
        if not expected:
            with pytest.raises(ValueError, match="every document of .* repeats one that is held out"):
                prepare(corpus, folder / "store", drop_duplicates=True, **options)
            return
        report = prepare(corpus, folder / "store", drop_duplicates=True, **options)
    train, held = splits(folder / "store", tokenizer)
    assert (train, held) == ([f"cat {number}" for number in expected], [f"cat {number}" for number in expected_held])
    assert (report.duplicate_documents, report.duplicates_dropped) == (repeats, True)
    assert report.documents == len(expected) + len(expected_held)


@pytest.mark.parametrize(("rule", "overlap"), [("split", 0), ("windows", 3), ("truncate", 0)])
def test_long_documents(tokenizer, tmp_path, rule, overlap):
    corpus = write_jsonl(tmp_path / "a.jsonl", ["cat", "the cat sat on the mat and the dog did not " * 9])
    options = {"tokenizer": tokenizer, "seq_len": 12, "valid_share": 0, "long_documents": rule, "overlap": overlap}
    report = prepare([corpus], tmp_path / "store", **options)
    short, long = tokenizer.encode_batch(["cat", "the cat sat on the mat and the dog did not " * 9])
    stored = pieces(tmp_path / "store")
    assert stored[:2] == [short, long[:10]]
    assert (stored[2:] == []) == (rule == "truncate")
    assert report.split_documents == 1
    assert report.tokens == sum(map(len, stored))
    assert report.dropped_tokens == (len(long) - 10 if rule == "truncate" else 0)
    assert report.repeated_tokens == (len(stored) - 2) * overlap
    assert report.corpus_tokens == len(short) + len(long)
    manifest = TokenStore.open(tmp_path / "store").manifest
    assert (manifest.long_documents, manifest.overlap) == (rule, overlap)
    split = manifest.splits["train"]
    assert (split.cut_documents, split.dropped_tokens, split.repeated_tokens) == (
        1,
        report.dropped_tokens,
        report.repeated_tokens,
    )


@pytest.mark.parametrize("identity", [None, "these texts"])
def test_what_is_read_like_a_corpus_goes_on_by_its_identity(tokenizer, tmp_path, monkeypatch, identity):
    monkeypatch.setattr(store_module, "SHARD_PIECES", 5)
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 7)
    corpus = Ids([[i + 5, 9] for i in range(60)], identity)
    prepare(corpus, tmp_path / "expected", tokenizer=tokenizer)

    def interrupt(state):
        if state.documents > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "store", tokenizer=tokenizer, progress=interrupt)
    report = prepare(corpus, tmp_path / "store", tokenizer=tokenizer)
    assert (report.resumed_documents > 20) == (identity is not None)
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_a_document_longer_than_memory(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "MAX_DOCUMENT_CHARACTERS", 100)
    corpus = write_jsonl(tmp_path / "a.jsonl", ["x" * 100, "x" * 101])
    with pytest.raises(ValueError, match=r"a document of a.jsonl has 101 characters, and at most 100 fit into memory"):
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer)


def test_estimates(tokenizer, tmp_path, monkeypatch):
    """Of the size of the store and the time that is left, from the first batch on; and a disk that is too small."""
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 40_000)
    corpus = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in sentences(50_000)]  # some MB, since files are read by the MB
    corpus.write_text("\n".join(lines))
    seen, notices = [], []
    monkeypatch.setattr(progress.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer, progress=seen.append, notice=notices.append)
    size = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.arrow"))
    middle, last = seen[len(seen) // 2], seen[-1]
    assert 0.6 * size < middle.bytes_out_estimate < 1.4 * size
    assert middle.seconds_left_estimate > 0
    assert last.seconds_left_estimate == 0
    assert len(notices) == 1
    assert re.fullmatch(
        r"the disk of .* has 0\.00 GB free, and the store will need about 0\.\d\d GB more; free some space, or stop "
        r"and choose another place",
        notices[0],
    )


def test_parquet_with_sources(tokenizer, tmp_path):
    table = pa.table({"sequence": sentences(10), "source": [f"s{i}" for i in range(10)]})
    pq.write_table(table, tmp_path / "a.parquet")
    prepare([tmp_path / "a.parquet"], tmp_path / "store", tokenizer=tokenizer, valid_share=0, seq_len=1000)
    store = TokenStore.open(tmp_path / "store")
    assert [store.source(i) for i in range(10)] == [f"s{i}" for i in range(10)]


def test_a_mixture_is_prepared_and_its_repeats_are_counted(tokenizer, tmp_path):
    write_jsonl(tmp_path / "large.jsonl", [f"large {i}" for i in range(90)])
    write_jsonl(tmp_path / "small.jsonl", [f"small {i}" for i in range(4)])
    parts = [(str(tmp_path / "large.jsonl"), 0.9), (str(tmp_path / "small.jsonl"), 0.1)]
    report = prepare(Mixture(parts), tmp_path / "store", tokenizer=tokenizer, valid_share=0)
    store = TokenStore.open(tmp_path / "store")
    sources = [store.source(i) for i in range(len(store))]
    assert report.repeats == {parts[0][0]: 0, parts[1][0]: sources.count("small.jsonl") // 4}
    for start in range(len(sources) - 10):
        assert sources[start : start + 10].count("small.jsonl") in (0, 1, 2)
    with pytest.raises(ValueError, match="drop_duplicates would take out what a mixture repeats on purpose"):
        prepare(Mixture(parts), tmp_path / "store", tokenizer=tokenizer, drop_duplicates=True)


def test_a_continued_preparation_is_of_the_same_options(tokenizer, tmp_path, monkeypatch):
    """What a corpus is read by decides about its documents, so another column is another preparation."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"one": f"one {i}", "two": f"two {i}"}) + "\n" for i in range(60)))
    one, two = Corpus([path], column="one"), Corpus([path], column="two")
    assert one.identity != two.identity and one.identity == Corpus([path], column="one").identity
    mixed = [Mixture([(str(path), weight), (str(tmp_path / "*.jsonl"), 1)], column="one") for weight in (1, 1, 2)]
    assert mixed[0].identity == mixed[1].identity != mixed[2].identity
    assert Corpus(["-"]).identity is None
