"""Which documents a preparation holds out, and that none of them is trained on."""

import re
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import contents, sentences, splits, write_jsonl

from mlm_pytorch.data import encode, holdout
from mlm_pytorch.data import store as store_module
from mlm_pytorch.data.mixture import Mixture
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore


@settings(deadline=None, max_examples=60)
@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    share=st.sampled_from([0.01, 0.3, 0.9]),
    most=st.integers(1, 10),
    copies=st.integers(1, 4),
    batch=st.integers(1, 100),
)
def test_held_out_documents(tokenizer, tmp_path_factory, numbers, share, most, copies, batch):
    folder = tmp_path_factory.mktemp("law")
    texts = [f"cat {number}" for number in numbers]
    corpus = write_jsonl(folder / "a.jsonl", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_CHARACTERS", batch)
        patch.setattr(holdout, "MAX_VALID_DOCUMENTS", most)
        patch.setattr(holdout, "MAX_COPIES", copies)
        prepare([corpus], folder / "store", tokenizer=tokenizer, valid_share=share)
    train, held = splits(folder / "store", tokenizer)
    assert Counter(train + held) == Counter(texts)  # nothing lost, nothing twice
    assert len(train) >= 1
    assert len(held) >= 1 or len(set(texts)) == 1 or max(Counter(texts).values()) > copies or most < copies
    assert len(held) <= max(most, copies)
    assert not set(train) & set(held)


def test_held_out_share_and_bound(tokenizer, tmp_path, monkeypatch):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(4000))
    report = prepare([corpus], tmp_path / "store", tokenizer=tokenizer, valid_share=0.1)
    assert 0.08 < report.valid_share < 0.12
    assert 20 < prepare([corpus], tmp_path / "store", tokenizer=tokenizer).valid_documents < 60
    monkeypatch.setattr(holdout, "MAX_VALID_DOCUMENTS", 100)
    bounded = prepare([corpus], tmp_path / "bounded", tokenizer=tokenizer, valid_share=0.5)
    assert 40 < bounded.valid_documents <= 100
    numbers = [int(text.split()[3]) for text in splits(tmp_path / "bounded", tokenizer)[1]]
    assert max(numbers) > 3000  # not only the head
    monkeypatch.setattr(holdout, "MAX_VALID_TOKENS", 500)
    assert prepare([corpus], tmp_path / "bounded", tokenizer=tokenizer, valid_share=0.5).valid_tokens <= 500


def test_valid_files(tokenizer, tmp_path):
    train, held = write_jsonl(tmp_path / "a.jsonl", sentences(50)), write_jsonl(tmp_path / "b.jsonl", ["the mat", ""])
    report = prepare([train], tmp_path / "store", tokenizer=tokenizer, valid=[held])
    assert splits(tmp_path / "store", tokenizer) == (sentences(50), ["the mat"])
    assert (report.valid_documents, report.empty_documents, report.documents) == (1, 1, 51)


@pytest.mark.parametrize("engine", ["a folder", "a link", "URLs", "file and URL"])
def test_valid_files_inside_the_corpus_are_not_trained_on(tokenizer, tmp_path, engine):
    folder = tmp_path / "data"
    folder.mkdir()
    train, held = write_jsonl(folder / "a.jsonl", sentences(50)), write_jsonl(folder / "valid.jsonl", ["the mat"])
    corpus, valid = str(folder), str(held)
    if engine == "a link":
        valid = str(tmp_path / "linked.jsonl")
        Path(valid).symlink_to(held)
    elif engine == "URLs":
        memory = fsspec.filesystem("memory")
        for path in (train, held):
            memory.pipe(f"/prepared/{path.name}", path.read_bytes())
        corpus, valid = "memory://prepared", "memory://prepared/valid.jsonl"
    elif engine == "file and URL":
        valid = held.as_uri()
    said: list[str] = []
    report = prepare([corpus], tmp_path / "store", tokenizer=tokenizer, valid=[valid], notice=said.append)
    assert splits(tmp_path / "store", tokenizer) == (sentences(50), ["the mat"])
    assert report.documents == 51 and len(said) == 1
    assert re.fullmatch(r"\S*valid\.jsonl is held out, so it is not trained on", said[0])
    if engine == "a folder":
        (folder / "valid").mkdir()
        held.rename(folder / "valid" / "a.jsonl")
        write_jsonl(folder / "valid" / "b.jsonl", ["the dog"])
        prepare([corpus], tmp_path / "store", tokenizer=tokenizer, valid=[f"{folder}/valid"], notice=said.append)
        assert splits(tmp_path / "store", tokenizer) == (sentences(50), ["the mat", "the dog"])
        assert said[1].endswith("valid/a.jsonl and 1 more are held out, so they are not trained on")


def test_a_preparation_that_leaves_files_out_is_continued(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_PIECES", 5)
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 7)
    folder = tmp_path / "data"
    folder.mkdir()
    held = write_jsonl(folder / "a.jsonl", ["the mat", "the dog"])  # before the one that is interrupted
    train = write_jsonl(folder / "b.jsonl", sentences(60))
    options = {"tokenizer": tokenizer, "valid": [held]}
    prepare([train], tmp_path / "expected", **options)

    def interrupt(state):
        if state.documents > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([folder, train], tmp_path / "store", progress=interrupt, **options)
    report = prepare([folder, train], tmp_path / "store", **options)
    assert report.resumed_documents > 20
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_all_files_of_a_corpus_held_out(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    said: list[str] = []
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer, valid=[corpus], notice=said.append)
    assert splits(tmp_path / "store", tokenizer) == (sentences(5), sentences(5))
    assert said == [
        f"{corpus} is held out and trained on as well, so what is measured there says nothing about other text"
    ]


def test_held_out_documents_that_are_trained_on_are_told(tokenizer, tmp_path):
    """Other files, some of the same texts: a loss on them would be one on what was learned by heart."""
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(50))
    valid = write_jsonl(tmp_path / "b.jsonl", [*sentences(3), "new", "new", *sentences(1)])
    said = []
    report = prepare([corpus], tmp_path / "store", valid=[valid], tokenizer=tokenizer, notice=said.append)
    (line,) = said
    assert line.startswith("4 of 6 held-out documents are in the corpus as well") and "--drop-duplicates takes" in line
    assert report.valid_documents_trained_on == 4
    report = prepare(
        [corpus], tmp_path / "store", valid=[valid], tokenizer=tokenizer, drop_duplicates=True, notice=said.append
    )
    assert report.valid_documents_trained_on == 0 and len(said) == 1
    train, held = splits(tmp_path / "store", tokenizer)
    assert not set(train) & set(held)
    prepare([corpus], tmp_path / "store", valid_share=0.1, tokenizer=tokenizer, notice=said.append)
    assert len(said) == 1


def test_valid_files_inside_a_mixture(tokenizer, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", sentences(5))
    held = write_jsonl(folder / "b.jsonl", ["the mat"])
    message = (
        r"b\.jsonl is held out, but a part of the mixture too, which is trained on; move it out of that part's folder"
    )
    with pytest.raises(ValueError, match=message):
        prepare(Mixture([(str(folder), 1)]), tmp_path / "store", tokenizer=tokenizer, valid=[held])


def test_a_file_named_twice_is_read_once(tokenizer, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    corpus = write_jsonl(folder / "wiki.jsonl", sentences(20))
    said: list[str] = []
    report = prepare([folder, corpus], tmp_path / "store", tokenizer=tokenizer, valid_share=0, notice=said.append)
    assert report.documents == 20 and report.duplicate_documents == 0
    assert said == [f"{corpus} is named twice, so it is read once"]
    prepare([corpus] * 3, tmp_path / "store", tokenizer=tokenizer, valid_share=0, notice=said.append)
    assert said[1] == f"{corpus} and 1 more are named twice, so they are read once"


def test_nothing_held_out(tokenizer, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", sentences(50))
    prepare([corpus], tmp_path / "store", tokenizer=tokenizer, valid_share=0)
    assert list(TokenStore.open(tmp_path / "store").manifest.splits) == ["train"]
    prepare([write_jsonl(tmp_path / "a.jsonl", ["only one"])], tmp_path / "store", tokenizer=tokenizer)
    assert list(TokenStore.open(tmp_path / "store").manifest.splits) == ["train"]
