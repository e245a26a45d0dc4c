"""`mlm evaluate`: the same figures for a file and its store, one ruler for all runs, no option that does nothing."""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mlm_pytorch.cli import main
from mlm_pytorch.data.manifest import Manifest
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer import Tokenizer, tokenizer_for_ids, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder
from mlm_pytorch.training.config import TrainConfig

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "its", "red", "house", "façade", "by", "old"]
CUTTINGS = {
    "split": {},
    "windows": {"long_documents": "windows", "overlap": 7},
    "truncate": {"long_documents": "truncate"},
}


def texts(seed: int, count: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 90))) for _ in range(count)]


TOKENIZER = train_tokenizer(texts(0), 340)
OTHER_TOKENIZER = train_tokenizer(texts(0), kind="wordpiece", vocab_size=110)


def write(path: Path, documents: Sequence[str | list[int]]) -> Path:
    lines = [json.dumps({"text": d} if isinstance(d, str) else {"input_ids": d}) for d in documents]
    path.write_text("\n".join(lines) + "\n")
    return path


def model(folder: Path, tokenizer: Tokenizer = TOKENIZER) -> Path:
    torch.manual_seed(0)
    shape = EncoderConfig(tokenizer.special.num_tokens, 32, 48, 2, 2, max_position_embeddings=64)
    export_encoder(Encoder(shape), tokenizer.special, folder, tokenizer.save)
    return folder


@pytest.fixture
def run(tmp_path) -> Callable[..., Path]:
    """Makes what a run leaves behind: its options, a store with what was held out, and a model."""

    def run(name: str, held_out: Sequence[str | list[int]], tokenizer: Tokenizer = TOKENIZER, seq_len=24, **cutting):
        folder = tmp_path / name
        folder.mkdir()
        corpus, valid = (write(tmp_path / f"{name}-{i}.jsonl", d) for i, d in enumerate((held_out[:3], held_out)))
        prepare([corpus], folder / "store", valid=[valid], tokenizer=tokenizer, seq_len=seq_len, **cutting)
        model(folder / "model", tokenizer)
        (folder / "config.yaml").write_text(TrainConfig(corpus=(str(corpus),), out=folder).to_yaml())
        return folder

    return run


def evaluate(capsys, *arguments: object) -> list[dict]:
    capsys.readouterr()
    main(["evaluate", *map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1, said
    return said


# -- a file and its store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutting", CUTTINGS)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_bits_per_byte_are_of_the_text_however_it_was_cut(tmp_path, capsys, cutting, split):
    """They are the loss times the tokens of a byte, and those are the text's own: of the file as of any store of it."""
    file, small = write(tmp_path / "file.jsonl", texts(1)), write(tmp_path / "small.jsonl", texts(2, 5))
    corpus = {"train": {"corpus": [file]}, "valid": {"corpus": [small], "valid": [file]}}[split]
    held_out = {"valid_share": 0.0} if split == "train" else {}
    prepare(out=tmp_path / "store", tokenizer=TOKENIZER, seq_len=24, **corpus, **held_out, **CUTTINGS[cutting])
    folder = model(tmp_path / "model")
    (of_file,) = evaluate(capsys, folder, "--data", file, "--seq-len", 24)
    (of_store,) = evaluate(capsys, folder, "--data", tmp_path / "store")
    assert (of_store["num_tokens"] == of_file["num_tokens"]) == (cutting == "split")
    assert of_store["bits_per_byte"] / of_store["loss"] == pytest.approx(of_file["bits_per_byte"] / of_file["loss"])
    if cutting == "split":
        assert (of_store.pop("split"), of_file.pop("split")) == (split, None)
        assert of_store == pytest.approx(of_file, abs=1e-5)


def test_a_store_with_a_held_out_split_is_measured_on_that_and_says_so(tmp_path, capsys):
    file, folder, store = write(tmp_path / "file.jsonl", texts(1)), model(tmp_path / "model"), tmp_path / "store"
    prepare([file], store, tokenizer=TOKENIZER, seq_len=24, valid_share=0.1)
    held_out = Manifest.read(store).splits["valid"].documents
    assert 0 < held_out < 40
    main(["evaluate", str(folder), "--data", str(store), "--json"])
    done = capsys.readouterr()
    report = json.loads(done.out)
    assert (report["split"], report["documents"]) == ("valid", held_out)
    assert f"measuring the held-out split of {store}: {held_out} of 40 documents; name files" in done.err
    assert evaluate(capsys, folder, "--data", file)[0]["documents"] == 40


def test_a_file_named_twice_is_read_once(tmp_path, capsys):
    file, folder = write(tmp_path / "file.jsonl", texts(1)), model(tmp_path / "model")
    (tmp_path / "link.jsonl").symlink_to(file)
    (once,) = evaluate(capsys, folder, "--data", file)
    for again in (file, tmp_path / "link.jsonl"):
        assert evaluate(capsys, folder, "--data", file, "--data", again) == [once]


def test_a_pipe_is_refused_for_several_models_before_the_first_is_measured(tmp_path, capsys):
    """As a shell's <(zcat corpus.gz) is one: for the second model it would be empty."""
    folder, pipe = model(tmp_path / "model"), tmp_path / "pipe"
    os.mkfifo(pipe)
    said = fails(capsys, folder, folder, "--data", pipe)
    assert said == f"mlm: {pipe} can be read for one model only; name a file to compare several\n"


# -- one ruler ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "changes"),
    [
        (TOKENIZER, {}),
        (TOKENIZER, {"seq_len": 40}),
        (TOKENIZER, CUTTINGS["windows"]),
        (OTHER_TOKENIZER, {}),
        (OTHER_TOKENIZER, {"seq_len": 40}),
    ],
)
def test_runs_that_held_out_the_same_text_are_compared_on_it(run, capsys, tokenizer, changes):
    one, other = run("one", texts(1)), run("other", texts(1), tokenizer, **changes)
    found = evaluate(capsys, one, other)
    apart = [evaluate(capsys, folder)[0] for folder in (one, other)]
    assert [report["loss"] for report in found] == [report["loss"] for report in apart]


def reads(seed: int) -> list[str]:
    """Texts that no count tells apart: so many, of one length."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(["the", "cat", "sat", "mat"], k=6)).ljust(30, ".") for _ in range(30)]


def ids(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.choices(range(5, 30), k=draw.randint(4, 20)) for _ in range(30)]


FOR_IDS = tokenizer_for_ids(32, mask_token_id=4, pad_token_id=0)


@pytest.mark.parametrize(
    ("held_out", "tokenizer", "changes"),
    [
        (texts(1)[:-1], TOKENIZER, {}),
        (texts(2), TOKENIZER, {}),
        (texts(2), TOKENIZER, {"seq_len": 40}),
        (texts(2), OTHER_TOKENIZER, {}),
        (texts(1), TOKENIZER, CUTTINGS["truncate"]),  # the ends of its documents are not there to be measured
        (texts(1), OTHER_TOKENIZER, CUTTINGS["truncate"]),
        (reads(2), TOKENIZER, {}),
        (reads(2), TOKENIZER, {"seq_len": 40}),
        (reads(2), OTHER_TOKENIZER, {}),
        (ids(2), FOR_IDS, {}),
        (ids(2), FOR_IDS, {"seq_len": 40}),
    ],
)
def test_runs_that_held_out_different_texts_need_one_to_be_named(run, tmp_path, capsys, held_out, tokenizer, changes):
    mine = reads(1) if held_out == reads(2) else ids(1) if held_out == ids(2) else texts(1)
    one = run("one", mine, FOR_IDS if tokenizer is FOR_IDS else TOKENIZER)
    other = run("other", held_out, tokenizer, **changes)
    assert fails(capsys, one, one, other) == f"mlm: {one} and {other} held out different texts; name one with --data\n"
    assert len(evaluate(capsys, one, other, "--data", write(tmp_path / "named.jsonl", mine))) == 2


def test_stores_without_a_hash_of_their_text_are_told_apart_by_their_counts(run, capsys):
    """Which cannot tell texts of one size."""
    runs = [run("one", reads(1)), run("other", reads(2), OTHER_TOKENIZER), run("more", texts(1), OTHER_TOKENIZER)]
    manifest = runs[0] / "store/manifest.json"
    content = json.loads(manifest.read_text())
    for split in content["splits"].values():
        del split["text_hash"]
    manifest.write_text(json.dumps(content))
    assert len(evaluate(capsys, *runs[:2])) == 2
    assert "held out different texts" in fails(capsys, runs[0], runs[2])


def test_what_has_nothing_held_out_is_told_before_anything_is_measured(run, tmp_path, capsys):
    one, folder = run("one", texts(1)), model(tmp_path / "bare")
    assert f"{folder} is not a run, so it has no held-out data of its own; name a corpus" in fails(capsys, one, folder)
    manifest = json.loads((one / "store/manifest.json").read_text())
    del manifest["splits"]["valid"]
    other = run("other", texts(1))
    (other / "store/manifest.json").write_text(json.dumps(manifest))
    for runs in ((one, other), (other,)):
        assert fails(capsys, *runs) == f"mlm: {other} held nothing out; name a corpus with --data\n"


def declare(folder: Path, length: int) -> Path:
    """Let a model say that it was trained at a length."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    return folder


def test_models_of_one_tokenizer_are_asked_the_same_questions_on_files(tmp_path, capsys):
    """Whatever lengths they were trained at: the figures are those of each alone at the least of them."""
    file = write(tmp_path / "file.jsonl", texts(1))
    folders = [declare(model(tmp_path / str(length)), length) for length in (48, 20, 30)]
    together = evaluate(capsys, *folders, "--data", file)
    assert together == [evaluate(capsys, folder, "--data", file, "--seq-len", 20)[0] for folder in folders]
    assert {(r["seq_len"], r["num_targets"], r["loss"]) for r in together} == {
        (20, together[0]["num_targets"], together[0]["loss"])
    }
    assert evaluate(capsys, folders[0], "--data", file)[0]["seq_len"] == 48
    main(["evaluate", *map(str, folders), "--data", str(file)])
    done = capsys.readouterr()
    assert done.out.count("20 tokens") == 3
    assert f"pieces have at most 20 tokens for all models, which is what {folders[1]} takes" in done.err


def test_lengths_that_a_model_does_not_take_are_refused(tmp_path, capsys):
    file, folder = write(tmp_path / "file.jsonl", texts(1)), model(tmp_path / "model")
    said = f"mlm: --seq-len 65 exceeds the 64 tokens of {folder}; lower it\n"
    assert fails(capsys, folder, "--data", file, "--seq-len", 65) == said
    for length in (0, -3):
        assert f"--seq-len {length} is too small" in fails(capsys, folder, "--data", file, "--seq-len", length)
    for rate in (0.0, 1.5, "nan"):
        assert f"--mask-prob {rate} is outside (0, 1]" in fails(capsys, folder, "--data", file, "--mask-prob", rate)


def test_runs_that_cut_the_same_text_differently_are_told_apart(run, capsys):
    one, other = run("one", texts(1)), run("other", texts(1), seq_len=40)
    main(["evaluate", str(one), str(other)])
    assert f"{one} and {other} cut what they held out differently, into pieces of at most 24 and 40" in (
        capsys.readouterr().err
    )


def test_every_model_is_looked_at_before_the_first_is_measured(run, tmp_path, capsys):
    one, file = run("one", texts(1)), write(tmp_path / "file.jsonl", texts(2))
    empty, lacking, other = tmp_path / "empty", model(tmp_path / "lacking"), model(tmp_path / "other", OTHER_TOKENIZER)
    (lacking / "model.safetensors").unlink()
    for last, data, said in (
        (empty, file, "holds no model"),
        (lacking, file, "has no model.safetensors"),
        (other, one / "store", "was made with another tokenizer"),
    ):
        assert said in fails(capsys, one, last, "--data", data)
        assert not capsys.readouterr().out


def test_what_was_measured_is_shown_when_a_later_model_fails(run, capsys):
    one, other = run("one", texts(1)), run("other", texts(1))
    weights = other / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(one), str(other)])
    done = capsys.readouterr()
    assert stop.value.code == 2 and "is damaged" in done.err
    assert str(one) in done.out and str(other) not in done.out


def test_a_run_whose_store_is_gone_says_so(run, capsys):
    one = run("one", texts(1))
    shutil.rmtree(one / "store")
    for corpus in ({"corpus": (), "mix": ("a.jsonl=1",)}, {"corpus": ("a.jsonl", "b.jsonl")}, {"corpus": ("gone",)}):
        (one / "config.yaml").write_text(TrainConfig(out=one, **corpus).to_yaml())
        assert f"the store that {one} was trained on is gone, and with it what was held out" in fails(capsys, one)


# -- options that would do nothing -------------------------------------------------------------------------------------


def test_options_that_would_change_nothing_are_refused(run, tmp_path, capsys):
    """Each in one line, before a model is opened: the folder of this one holds none."""
    one = run("one", texts(1))
    (one / "model/model.safetensors").unlink()
    store, none = one / "store", tmp_path / "none"
    cases = [
        (("--minimal-pairs", none, "--breakdown"), "--breakdown is of the masked loss, which --minimal-pairs without"),
        (("--minimal-pairs", none, "--mask-prob", 0.3), "--mask-prob is of the masked loss, which --minimal-pairs"),
        (("--minimal-pairs", none, "--seq-len", 16), "--seq-len is of the masked loss, which --minimal-pairs without"),
        (
            ("--probe-train", none, "--probe-test", none, "--column", "a"),
            "--column is of the masked loss, which --probe-train without --data does not measure; name held-out text",
        ),
        (("--seq-len", 16), f"--seq-len is settled by the store {store}; leave it out, or name files with --data"),
        (("--column", "a"), f"--column is settled by the store {store}; leave it out, or name files with --data"),
        (("--data", store, "--seq-len", 16), f"--seq-len is settled by the store {store}; leave it out, or name"),
        (("--data", store, "--column", "a"), f"--column is settled by the store {store}; leave it out, or name"),
        (("--pll", "word-l2r"), "--pll is of minimal pairs, and none are named; name --minimal-pairs, or leave it"),
        (("--pair-score", "mean"), "--pair-score is of minimal pairs, and none are named; name --minimal-pairs"),
        (("--probe-seeds", 5), "--probe-seeds needs a task; name --probe-train and --probe-test"),
        (("--probe-finetune",), "--probe-finetune needs a task; name --probe-train and --probe-test"),
    ]
    for arguments, expected in cases:
        assert fails(capsys, one, *arguments).startswith(f"mlm: {expected}"), arguments


def test_options_that_change_something_are_taken(run, tmp_path, capsys):
    one, file = run("one", texts(1)), write(tmp_path / "file.jsonl", texts(2))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"good": "the cat sat", "bad": "cat the sat", "uid": "u"}) + "\n")
    (both,) = evaluate(capsys, one, "--minimal-pairs", pairs, "--data", file, "--breakdown", "--seq-len", 16)
    assert {"loss", "breakdown", "minimal_pairs"} <= set(both)
    (more,) = evaluate(capsys, one, "--mask-prob", 0.3, "--breakdown")
    assert more["num_targets"] > evaluate(capsys, one)[0]["num_targets"]
    (column,) = evaluate(capsys, one, "--data", file, "--column", "text")
    assert column == evaluate(capsys, one, "--data", file)[0]
