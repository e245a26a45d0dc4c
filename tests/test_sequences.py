"""Sequences that are no text, from real files to a model that transformers loads: proteins, DNA, cells."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from test_cli import mlm
from transformers import AutoModelForMaskedLM, AutoTokenizer

DATA = Path(__file__).parents[2] / "shared/data/sequences"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the sequences to test with are not on this machine")
SMALL = ("--model", "tiny", "--seq-len", "64", "--pack-tokens", "1024", "--budget", "2steps")


@pytest.fixture(scope="module")
def proteins(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("proteins") / "proteins.parquet"
    pq.write_table(pq.read_table(DATA / "proteins.parquet").slice(0, 200), path)
    return path


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dna") / "reads.fasta"
    path.write_text("\n".join((DATA / "metagenomics.fasta").read_text().splitlines()[:600]))
    return path


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.parquet"
    pq.write_table(pq.read_table(DATA / "genecorpus.parquet").slice(0, 40), path)
    return path


def loaded(run: Path):
    return AutoModelForMaskedLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")


def check(run: Path, corpus: Path, text: str) -> list[str]:
    """Evaluate on the corpus, export, load in transformers and fill a mask; the candidates."""
    result = json.loads(mlm("evaluate", run, "--data", corpus, "--json").stdout)
    assert result["num_targets"] > 100 and 0 < result["loss"] < 15
    mlm("export", run, run / "exported")
    model, tokenizer = loaded(run)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert (ids == tokenizer.mask_token_id).sum() == 1
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, (ids[0] == tokenizer.mask_token_id).nonzero().item()]
    [filled] = map(json.loads, mlm("fill", run, text, "--json", "--top-k", "3").stdout.splitlines())
    candidates = filled["masks"][0]["candidates"]
    special = torch.tensor(tokenizer.all_special_ids)
    assert candidates[0]["id"] == int(best.index_fill(0, special, float("-inf")).argmax())
    return [candidate["token"] for candidate in candidates]


@needs_data
def test_proteins(proteins, tmp_path):
    run = tmp_path / "run"
    done = mlm("train", proteins, "--out", run, *SMALL)
    assert "amino-acids" in done.stderr
    candidates = check(run, proteins, "MKTAYIAKQR[MASK]ISFVKSHFSRQ")
    assert all(len(candidate) == 1 for candidate in candidates)
    _, tokenizer = loaded(run)
    ids = tokenizer("MKTAYIAKQR")["input_ids"]
    assert len(ids) == 12 and tokenizer.decode(ids, skip_special_tokens=True) == "MKTAYIAKQR"


@needs_data
def test_dna(reads, tmp_path):
    run = tmp_path / "run"
    done = mlm("train", reads, "--out", run, *SMALL)
    assert "kmer" in done.stderr
    candidates = check(run, reads, "ACGTACGGATTA[MASK]ACGGTA")
    assert all(set(candidate) <= set("ACGTN") for candidate in candidates)


@needs_data
def test_cells(cells, tmp_path):
    run = tmp_path / "run"
    mlm("train", cells, "--out", run, "--add-special-tokens", *SMALL)
    candidates = check(run, cells, "17 204 [MASK] 99")
    assert all(candidate.isdecimal() for candidate in candidates)
    model, tokenizer = loaded(run)
    assert tokenizer("17 204 99")["input_ids"] == [17, 204, 99]
    assert model.config.vocab_size >= tokenizer.mask_token_id > 204


def test_ids_as_numpy_and_as_json(tmp_path):
    import numpy as np

    rows = np.random.default_rng(0).integers(2, 50, (60, 20))
    np.save(tmp_path / "events.npy", rows)
    (tmp_path / "events.jsonl").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in rows))
    special = ("--num-tokens", "50", "--mask-token-id", "1", "--pad-token-id", "0")
    reports = [
        json.loads(mlm("prepare", tmp_path / name, "--out", tmp_path / f"{name}.store", *special, "--json").stdout)
        for name in ("events.npy", "events.jsonl")
    ]
    assert reports[0]["tokens"] == reports[1]["tokens"] == 1200 and reports[0]["num_tokens"] == 50
    shards = [(tmp_path / f"{name}.store/train-00000.arrow") for name in ("events.npy", "events.jsonl")]
    assert shards[0].stat().st_size > 0 and shards[1].stat().st_size > 0
    mlm("train", tmp_path / "events.npy.store", "--out", tmp_path / "run", "--model", "tiny", "--budget", "1steps")
    check(tmp_path / "run", tmp_path / "events.npy", "17 20 [MASK] 9")


def test_rows_of_one_length_lose_their_padding_and_special_ids_are_left_alone(tmp_path):
    import numpy as np

    rows = np.random.default_rng(0).integers(3, 50, (60, 20))
    rows[:, 0] = 2  # begins every sequence
    rows[:, 15:] = 0
    np.save(tmp_path / "events.npy", rows)
    special = ("--num-tokens", "50", "--mask-token-id", "1", "--pad-token-id", "0", "--special-ids", "2")
    printed = mlm("prepare", tmp_path / "events.npy", "--out", tmp_path / "store", *special, "--json").stdout
    assert json.loads(printed)["tokens"] == 60 * 15
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert manifest["special"]["ids"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "holds token ids, and no tokenizer was given"),
        (("--mask-token-id", "1"), "pad"),
        (("--special-ids", "2"), "name the ids that the corpus reserves"),
        (
            ("--num-tokens", "20", "--mask-token-id", "1", "--pad-token-id", "0"),
            "line 1: id 30 is not less than num_tokens 20",
        ),
        (("--add-special-tokens", "--tokenizer", "bpe"), "leave out one"),
    ],
)
def test_ids_that_nothing_explains(tmp_path, options, message):
    (tmp_path / "events.jsonl").write_text("".join(json.dumps({"input_ids": [3, 4, 30]}) + "\n" for _ in range(5)))
    done = mlm("prepare", tmp_path / "events.jsonl", "--out", tmp_path / "store", *options, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_the_largest_id_cannot_be_found_in_a_pipe_or_in_text(tmp_path):
    done = mlm("prepare", "-", "--out", tmp_path / "store", "--add-special-tokens", code=2)
    assert "pass --num-tokens" in done.stderr
    (tmp_path / "text.txt").write_text("no ids here\n")
    done = mlm("prepare", tmp_path / "text.txt", "--out", tmp_path / "store", "--add-special-tokens", code=2)
    assert "holds no token ids" in done.stderr
