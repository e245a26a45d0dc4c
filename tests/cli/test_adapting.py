"""A trained model on another domain: what it is told, what it forgets, and what its vocabulary gains."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from mlm_pytorch.cli import main
from mlm_pytorch.cli.adapting import kept_packs, read_adaptation
from mlm_pytorch.data.packing import Pack
from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.metrics import read_metrics

GENERAL = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "its", "own", "red", "house", "by", "old"]
DOMAIN = ["cardiomyopathy", "pathology", "myocardial", "opal", "card", "heart", "patients", "ran", "the", "of"]


def lines(words: list[str], count: int = 80) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=draw.randint(5, 20))) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A BERT with a WordPiece tokenizer of general text, that text, and one of another domain."""
    folder = tmp_path_factory.mktemp("adapting")
    (folder / "general.txt").write_text("\n".join(lines(GENERAL)))
    (folder / "domain.txt").write_text("\n".join(lines(DOMAIN)))
    alphabet = ["abcdefghijklmnopqrstuvwxyz"]
    train_tokenizer(lines(GENERAL) + alphabet, kind="wordpiece", vocab_size=110).save(folder / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=128, max_position_embeddings=64, **shape)).save_pretrained(folder / "bert")
    return folder


def train(*arguments: object) -> None:
    options = ("--budget", "4steps", "--seq-len", "64", "--pack-tokens", "256", "--evaluations", "2", "--threads", "1")
    main(["train", *map(str, (*arguments, *options))])


def test_extended_kept_and_replayed(place, tmp_path, capsys):
    mix = ("--mix", f"{place / 'domain.txt'}=0.8", "--mix", f"{place / 'general.txt'}=0.2")
    run = ("--model", place / "bert", "--extend-vocabulary", "20", "--keep", place / "general.txt", "--lr", "1e-9")
    train(*mix, *run, "--out", tmp_path / "run")
    said = capsys.readouterr().err
    assert "of the general text (" in said and "it fits badly, --extend-vocabulary may help" in said
    assert "costliest words: " in said and "pieces, " in said
    assert "20 tokens added to the vocabulary, which then makes" in said
    assert "--lr" not in said.partition("gentle on a model that is continued:")[2].splitlines()[0]
    measured = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4] and all(1 < line["keep_loss"] < 9 for line in measured)
    old, new = load_tokenizer(place / "bert"), AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert len(new) == old.special.num_tokens + 20
    assert len(new("cardiomyopathy")["input_ids"]) < len(old.encode("cardiomyopathy"))
    # at a rate of next to nothing, old rows are what they were, and new ones the means of their pieces'
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/model")
    rows = model.get_input_embeddings().weight
    before = load_file(place / "bert/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(rows[: old.special.num_tokens], before[: old.special.num_tokens], atol=1e-6, rtol=0)
    id = old.special.num_tokens
    pieces = old.encode_batch([new.convert_ids_to_tokens(id).removeprefix("##")])[0]
    if not new.convert_ids_to_tokens(id).startswith("##"):
        torch.testing.assert_close(rows[id], before[pieces].mean(0), atol=1e-6, rtol=0)
    main(["evaluate", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(measured[-1]["valid_loss"], abs=0.05)


def test_whole_words_are_masked_with_new_tokens(place, tmp_path):
    run = ("--model", place / "bert", "--extend-vocabulary", "10", "--selection", "words")
    train(place / "domain.txt", *run, "--out", tmp_path / "run")
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["step"] == 4


def test_a_start_that_ended_before_its_first_checkpoint(place, tmp_path):
    """The vocabulary is extended by the same tokens again, for the store that is there."""
    run = (place / "domain.txt", "--model", place / "bert", "--extend-vocabulary", "10", "--precision", "float32")
    train(*run, "--out", tmp_path / "whole")
    train(*run, "--out", tmp_path / "again")
    for path in (tmp_path / "again/checkpoints").glob("*/manifest.json"):
        path.unlink()
    (tmp_path / "again/model").unlink()
    train(*run, "--out", tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_corpus_that_changed_before_the_first_checkpoint(place, tmp_path, capsys):
    """Its tokens would be others than the store's, and would begin with the embeddings of others' pieces."""
    corpus = tmp_path / "domain.txt"
    corpus.write_bytes((place / "domain.txt").read_bytes())
    run = (corpus, "--model", place / "bert", "--extend-vocabulary", "10", "--out", tmp_path / "run")
    train(*run)
    for path in (tmp_path / "run/checkpoints").glob("*/manifest.json"):
        path.unlink()
    (tmp_path / "run/model").unlink()
    with corpus.open("a") as file:
        file.write("the plaintiff swore an affidavit of jurisprudence\n" * 400)
    with pytest.raises(SystemExit):
        train(*run)
    assert "was prepared from another text than the corpus now holds" in capsys.readouterr().err


@pytest.fixture
def notes(place, tmp_path) -> dict[str, Path]:
    """General text under the names that files give it, some of them beside a column that is no text."""
    made = {
        "notes": ("jsonl", [json.dumps({"note": text, "text": "xx"}) for text in lines(GENERAL)]),
        "texts": ("jsonl", [json.dumps({"text": text, "id": 3}) for text in lines(GENERAL)]),
        "table": ("csv", ["id,note", *(f"3,{text}" for text in lines(GENERAL))]),
        "plain": ("txt", lines(GENERAL)),
    }
    for name, (suffix, rows) in made.items():
        (tmp_path / f"{name}.{suffix}").write_text("\n".join(rows) + "\n")
    return {name: tmp_path / f"{name}.{suffix}" for name, (suffix, _) in made.items()}


def ids_of(packs: list[Pack]) -> list[int]:
    return [id for pack in packs for id in pack.input_ids.tolist()]


@pytest.mark.parametrize("names", [["notes"], ["texts"], ["table"], ["plain"], ["notes", "texts", "plain", "table"]])
def test_the_text_to_keep_is_the_corpus_column_where_a_file_has_it(place, notes, names):
    """Whatever it is called, it is the same text, for what is measured as for what is told of the tokenizer."""
    tokenizer, files = load_tokenizer(place / "bert"), tuple(str(notes[name]) for name in names)
    plain = (str(notes["plain"]),) * len(names)
    kept = kept_packs(files, "note", tokenizer, 64, 256)
    assert ids_of(kept) == ids_of(kept_packs(plain, None, tokenizer, 64, 256))
    told, expected = (
        read_adaptation(TrainConfig(corpus=(str(notes["notes"]),), out=place, column="note", keep=keep), tokenizer)
        for keep in (files, plain)
    )
    assert told is not None and expected is not None and told.fit == expected.fit


def test_a_text_to_keep_from_a_pipe_is_read_once(place, notes):
    """So nobody can look whether it has the corpus's column before it is read by that."""
    tokenizer = load_tokenizer(place / "bert")
    ends = os.pipe()
    os.write(ends[1], notes["notes"].read_bytes())
    os.close(ends[1])
    kept = kept_packs((f"/dev/fd/{ends[0]}",), "note", tokenizer, 64, 256)
    os.close(ends[0])
    assert ids_of(kept) == ids_of(kept_packs((str(notes["plain"]),), None, tokenizer, 64, 256))


def test_a_text_to_keep_without_a_column_that_could_be_meant(place, notes, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"title": "a", "body": "b"}\n')
    files = (str(notes["notes"]), str(tmp_path / "other.jsonl"))
    with pytest.raises(ValueError, match=r"other.jsonl line 1 has none of 'text', .* its columns are 'title', 'body'"):
        kept_packs(files, "note", load_tokenizer(place / "bert"), 64, 256)


def test_what_is_kept_of_a_corpus_with_a_column(place, notes, tmp_path, capsys):
    keep = ("--keep", notes["table"], "--keep", notes["texts"])
    train(notes["notes"], "--column", "note", "--model", place / "bert", *keep, "--out", tmp_path / "run")
    assert "of the general text (" in capsys.readouterr().err
    measured = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "valid_loss" in line]
    assert measured and all(1 < line["keep_loss"] < 9 for line in measured)


def test_what_is_held_out_adds_no_tokens(place, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(GENERAL)))
    (tmp_path / "valid.txt").write_text("\n".join(lines(["abracadabra"])))
    config = TrainConfig(corpus=(str(tmp_path),), out=tmp_path / "run", valid=(str(tmp_path / "valid.txt"),))
    adaptation = read_adaptation(config, load_tokenizer(place / "bert"))
    assert adaptation is not None
    alone = read_adaptation(replace(config, corpus=(str(tmp_path / "a.txt"),)), load_tokenizer(place / "bert"))
    assert alone is not None and adaptation.counts == alone.counts


def test_mistakes_with_adaptation(place, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "rare.txt").write_text("xq\nzv\n")
    cases = [
        ((place / "domain.txt", "--keep", tmp_path / "empty.txt"), "empty.txt"),
        ((place / "domain.txt", "--extend-vocabulary", "0"), "--extend-vocabulary 0 is too small; give at least 1"),
        ((tmp_path / "rare.txt", "--extend-vocabulary", "5"), "so nothing would be gained"),
        (("-", "--extend-vocabulary", "5"), "has to read the corpus as text, and more than once"),
    ]
    for arguments, expected in cases:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            train(*arguments, "--model", place / "bert", "--out", tmp_path / "run")
        said = capsys.readouterr().err
        assert expected in said.splitlines()[-1] and "Traceback" not in said, said
        assert not (tmp_path / "run").exists()
