"""The command as people run it: real processes, real files, real mistakes."""

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from mlm_pytorch.cli import main
from mlm_pytorch.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "its",
    "own",
    "red",
    "house",
    "by",
    "old",
    "river",
]


def process(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "mlm_pytorch", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)


@dataclass
class Done:
    stdout: str
    stderr: str


def mlm(*arguments: str | Path, code: int = 0) -> Done:
    """The command in this process, which saves the seconds that a start takes."""
    out, err = io.StringIO(), io.StringIO()
    returned = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            returned = int(stop.code or 0)
    assert returned == code, f"exit code {returned}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(out.getvalue(), err.getvalue())


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) + "." for _ in range(count)]


SMALL = ("--model", "tiny", "--seq-len", "48", "--pack-tokens", "512", "--vocab-size", "384")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": s, "source": "made up"}) + "\n" for s in sentences(400))
    return path


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    done = mlm("train", corpus, "--out", out, "--budget", "12steps", *SMALL)
    assert "done:" in done.stderr and "held-out loss" in done.stderr
    return out


def test_a_run_explains_itself(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "store", "metrics.jsonl", "checkpoints", "model", "run.json"} <= names
    (sitting,) = json.loads((run / "run.json").read_text())["sittings"]
    assert sitting["to_step"] == 12 and sitting["stopped_by"] is None and sitting["parameters"] > 1e6
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert any("valid_loss" in line for line in lines)


def test_the_model_loads_in_transformers_and_fills_masks(run):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.mask_token == "[MASK]" and tokenizer.model_max_length == 48
    filled = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the cat sat on a [MASK].", top_k=3)
    assert len(filled) == 3 and all(0 < item["score"] < 1 for item in filled)


def test_fill_agrees_with_the_pipeline(run):
    done = mlm("fill", run, "the cat sat on a [MASK].", "a [MASK] by the [MASK]", "--top-k", "2", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["text"] == "the cat sat on a [MASK]." and len(first["masks"]) == 1 and len(second["masks"]) == 2
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    expected = pipeline("fill-mask", model=model, tokenizer=tokenizer)(first["text"], top_k=2)
    candidates = first["masks"][0]["candidates"]
    assert [c["id"] for c in candidates] == [item["token"] for item in expected]
    assert candidates[0]["probability"] == pytest.approx(expected[0]["score"], abs=1e-3)
    assert candidates[0]["token"] == expected[0]["token_str"].strip()
    assert "%" in mlm("fill", run, "a [MASK]").stdout


def test_evaluate_export_and_a_held_out_file(run, corpus, tmp_path):
    own = json.loads(mlm("evaluate", run, "--json").stdout)
    assert set(own) >= {"loss", "accuracy", "num_targets"} and 1 < own["loss"] < 7
    mlm("export", run, tmp_path / "exported")
    lines = mlm("evaluate", run, tmp_path / "exported", "--data", corpus, "--json").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert first["loss"] == second["loss"] and first["num_targets"] == second["num_targets"] > 500
    assert first["bits_per_byte"] > 0
    assert "nats per token" in mlm("evaluate", run).stdout


@pytest.fixture(scope="module")
def bert(run, tmp_path_factory) -> Path:
    """A folder of another architecture, with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=384, max_position_embeddings=64, **size)).save_pretrained(folder)
    for path in (run / "model").glob("token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_models_of_any_architecture_are_compared_in_one_table(run, bert, corpus):
    lines = mlm("evaluate", run, bert, "--data", corpus, "--breakdown").stdout.splitlines()
    assert lines[0].split()[0] == "model" and "bits per byte" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == [str(run), str(bert)]
    assert any("nats per token by source" in line and str(bert) in line for line in lines)
    both = mlm("evaluate", run, bert, "--data", corpus, "--json").stdout.splitlines()
    assert len({json.loads(line)["num_targets"] for line in both}) == 1  # the same positions
    done = json.loads(mlm("fill", bert, "the [MASK] sat", "--json").stdout)
    assert len(done["masks"][0]["candidates"]) == 5


def test_a_store_is_evaluated_like_the_file_it_was_made_of(run, corpus, tmp_path):
    options = ("--tokenizer", run / "model", "--seq-len", "48")
    mlm("prepare", corpus, "--out", tmp_path / "store", "--valid", corpus, *options)
    lines = [mlm("evaluate", run, "--data", data, "--json").stdout for data in (corpus, tmp_path / "store")]
    first, second = map(json.loads, lines)
    assert first["num_targets"] == second["num_targets"] and first["bits_per_byte"] == second["bits_per_byte"]


def test_minimal_pairs_and_probe(run, bert, tmp_path):
    pairs = [{"good": "the cat sat.", "bad": "cat the sat.", "uid": f"u{i % 2}", "phenomenon": "p"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = [f"{i % 2}\t{'cat' if i % 2 else 'dog'} sat by the river" for i in range(40)]
    (tmp_path / "task.tsv").write_text("\n".join(rows))
    options = ["--minimal-pairs", tmp_path / "pairs.jsonl", "--pll", "word-l2r"]
    pytest.importorskip("sklearn")
    options += ["--probe-train", tmp_path / "task.tsv", "--probe-test", tmp_path / "task.tsv", "--probe-seeds", "1"]
    found = json.loads(mlm("evaluate", run, *options, "--json").stdout)
    assert "loss" not in found  # held-out loss was not asked for
    assert found["minimal_pairs"]["overall"]["num_pairs"] == 6 and set(found["minimal_pairs"]["uids"]) == {"u0", "u1"}
    assert found["probe"]["frozen"]["pretrained"] > 0.9
    shown = mlm("evaluate", run, bert, *options[:4]).stdout
    assert "minimal pairs by phenomenon" in shown and "%" in shown


def test_fill_a_file_of_lines_and_a_conversation(run, tmp_path, monkeypatch):
    path = write(tmp_path / "lines.txt", b"the [MASK] sat\n\na [MASK] by the [MASK]\n")
    found = [json.loads(line) for line in mlm("fill", run, "--file", path, "--json").stdout.splitlines()]
    assert [len(each["masks"]) for each in found] == [1, 2]
    said = iter(["the [MASK] sat", "no gap", ""])
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    shown = mlm("fill", run).stdout
    assert "%" in shown and "no mask in 'no gap'" in shown


def test_mistakes_with_evaluation(run, bert, tmp_path):
    pair = {"good": "the cat " * 40, "bad": "a"}
    long = write(tmp_path / "long.jsonl", json.dumps(pair).encode())
    short = write(tmp_path / "short.jsonl", b'{"text": "no pair"}')
    one = write(tmp_path / "one.tsv", b"0\ta\n0\tb")
    blank, lines = write(tmp_path / "blank.txt", b"\n"), write(tmp_path / "lines.txt", b"a [MASK]\nno gap\n")
    headless, maskless = tmp_path / "headless", tmp_path / "maskless"
    for folder in (headless, maskless):
        shutil.copytree(bert, folder)
    config = json.loads((bert / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"model_type": "gpt2", "architectures": ["GPT2"]}))
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (maskless / name).write_text(
            (bert / name).read_text().replace("[MASK]", "[GAP]").replace('"mask_token"', '"m"')
        )
    cases = [
        (("evaluate", bert, "--minimal-pairs", long), "sentence 1 has"),
        (("evaluate", bert, "--minimal-pairs", short), "line 1 is no pair"),
        (("evaluate", bert, "--minimal-pairs", blank), "holds no pairs"),
        (("evaluate", bert, "--probe-train", one, "--probe-test", one), "has one label only (0)"),
        (("evaluate", bert, "--probe-train", one), "--probe-train and --probe-test go together"),
        (("evaluate", bert, "--probe-finetune"), "--probe-finetune needs a task"),
        (("evaluate", bert, run, "--data", "-"), "standard input can be read for one model only"),
        (("evaluate", bert, "--data", blank), "holds no token to predict"),
        (("evaluate", headless, "--data", lines), "type 'gpt2', which is no masked language model"),
        (("evaluate", maskless, "--data", lines), "has no mask token"),
        (("fill", bert, "--file", blank), "holds no text"),
        (("fill", bert, "--file", lines), "line 2: no mask in 'no gap'"),
        (("fill", bert, "--file", tmp_path / "none"), "none"),
    ]
    for arguments, expected in cases:
        done = mlm(*arguments, code=2)
        assert expected in done.stderr.splitlines()[-1], (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_prepare_once_and_train_on_the_store(corpus, tmp_path):
    report = json.loads(
        mlm("prepare", corpus, "--out", tmp_path / "store", "--seq-len", "48", "--vocab-size", "384", "--json").stdout
    )
    assert report["documents"] == 400
    mlm(
        "train",
        tmp_path / "store",
        "--out",
        tmp_path / "run",
        "--budget",
        "2steps",
        "--model",
        "tiny",
        "--pack-tokens",
        "512",
    )
    assert not (tmp_path / "run/store").exists() and (tmp_path / "run/model/config.json").is_file()
    done = mlm("train", tmp_path / "store", "--out", tmp_path / "other", "--seq-len", "32", code=2)
    assert "--seq-len is settled by the store" in done.stderr


def test_standard_input_and_continued_pretraining(run, tmp_path):
    options = ("--budget", "2steps", "--seq-len", "48", "--pack-tokens", "512")
    done = process(
        "train", "-", "--out", tmp_path / "run", "--model", run / "model", *options, stdin="\n".join(sentences(60))
    )
    assert done.returncode == 0, done.stderr
    same = AutoTokenizer.from_pretrained(run / "model").get_vocab()
    assert AutoTokenizer.from_pretrained(tmp_path / "run/model").get_vocab() == same


def test_a_budget_alone_chooses_the_rest_and_longer_budgets_keep_it(corpus, tmp_path):
    """With averaged weights, which `train` checks through transformers, and batches that grow."""
    options = ("--vocab-size", "384", "--seq-len", "48", "--ema", "0.9", "--packs-per-step-end", "2", "--out", tmp_path)
    done = mlm("train", corpus, "--budget", "3steps", *options)
    assert "chosen for a budget of 3steps on this cpu: --lr 0.004 --model nano --pack-tokens 2048" in done.stderr
    assert "; averaged weights " in done.stderr
    held_out = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert held_out[-1]["ema_valid_loss"] != held_out[-1]["valid_loss"]
    assert json.loads(mlm("evaluate", tmp_path, "--json").stdout)["loss"] > 0
    done = mlm("train", corpus, "--budget", "4steps", *options)
    assert "continuing at step 3" in done.stderr and "chosen for" not in done.stderr
    done = mlm("train", corpus, "--budget", "4steps", *options, "--model", "mini", code=2)
    assert "another configuration (model: nano -> mini)" in done.stderr


def test_another_configuration_is_named(run, corpus):
    done = mlm("train", corpus, "--out", run, "--budget", "12steps", *SMALL, "--seed", "7", code=2)
    assert "another configuration (seed: 0 -> 7)" in done.stderr


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_mistakes_with_a_corpus(tmp_path):
    whole = gzip.compress(b'{"text": "some words here"}\n' * 1000)
    cases = {
        "missing.txt": (None, "missing.txt"),
        "empty.txt": (b"", "no text"),
        "cut.jsonl.gz": (whole[: len(whole) // 2], "cut.jsonl.gz"),
        "not.jsonl.gz": (b"plain text\n", "not.jsonl.gz"),
        "latin.txt": ("fa\u00e7ade\n".encode("latin-1"), "UTF-8"),
        "lines.jsonl": (b'{"text": "fine"}\n{"title": "no text"}\n', "line 2"),
        "bad.parquet": (b"PAR0 nothing", "bad.parquet"),
    }
    for name, (content, expected) in cases.items():
        if content is not None:
            write(tmp_path / name, content)
        done = mlm("train", tmp_path / name, "--out", tmp_path / "run", code=2)
        assert expected in done.stderr.splitlines()[-1], name
        assert "Traceback" not in done.stderr, name
        assert not (tmp_path / "run").exists(), f"{name}: something half-written is left"


def test_mistakes_with_options(run, corpus, tmp_path):
    out = ("--out", tmp_path / "run")
    cases = [
        (("train", corpus), "Missing from mlm train: --out PATH"),
        (
            ("train", corpus, "--budgit", "3"),
            "mlm train has no option --budgit; did you mean --budget? mlm train --help",
        ),
        (
            ("train", corpus, *out, "--epochs=3"),
            "write --budget 3epochs for --epochs; docs/moving.md has all",
        ),
        (("train", corpus, *out, "--resume"), "leave out --resume (the same command goes on); docs/"),
        (("train", corpus, *out, "--no-recompute", "--xyzzy"), "has no option --xyzzy; mlm train --help lists all"),
        (("fill", run, "--epochs", "3"), "mlm fill has no option --epochs; mlm fill --help lists all"),
        (("train", corpus, *out, "--lr", "fast"), "--lr 'fast' cannot be read as FLOAT; mlm train --help says what it"),
        (("train", corpus, *out, "--mask_prob=15%"), "--mask-prob '15%' cannot be read as FLOAT; mlm train --help"),
        (("tain", corpus), "'tain' is no command (demo, prepare, train, "),
        (("tain",), "; did you mean train? mlm --help explains each"),
        (("train", *out), "no corpus is named"),
        (("prepare", *out), "no corpus is named"),
        (("fill", run), "no text is given"),
        (("evaluate",), "no model is named"),
        (("train", corpus, *out, "--budget", "soon"), "budget 'soon' cannot be read"),
        (("train", corpus, *out, "--tokenizer", tmp_path), "tokenizer"),
        (("train", corpus, *out, "--track", "wandb"), "--track wandb needs the package wandb, which is not installed"),
        (("train", corpus, *out, "--lr", "-1"), "--lr -1.0 is not positive"),
        (("train", corpus, *out, "--stop-before", "5steps"), "--stop-before 5steps is no time"),
        (("train", corpus, *out, "--checkpoint-every", "0"), "--checkpoint-every '0' cannot be read; write it like"),
        (("train", corpus, *out, "--tokenizer", "nowhere"), "'nowhere' is unknown; choose one of bpe, "),
        (("train", corpus, "--out", corpus / "run"), f"{corpus / 'run'}: Not a directory; check the path"),
        (("train", corpus, *out, "--model", "enormous"), "--model 'enormous' is neither a preset"),
        (
            ("train", corpus, *out, "--seq-len", "9000", "--pack-tokens", "9000", "--budget", "1steps"),
            "seq_len 9000 exceeds max_position_embeddings 2048",
        ),
        (
            ("train", corpus, *out, "--pack-tokens", "100"),
            "seq_len 256 exceeds the 100 tokens of a pack; raise --pack-tokens",
        ),
        (("fill", tmp_path, "a [MASK]"), "holds no model"),
        (("fill", run, "no gap"), "no mask in 'no gap'"),
        (("fill", run, "a [MASK]", "--top-k", "0"), "--top-k 0 is outside 1 to"),
        (("evaluate", tmp_path / "none"), "holds no model"),
        (("evaluate", run / "model"), "name a corpus with --data"),
        (("export", run, run), "exists and is not an empty folder"),
        (("train", corpus, "--out", corpus), "is a file; name a folder"),
    ]
    for arguments, expected in cases:
        done = mlm(*arguments, code=2)
        assert expected in done.stderr.splitlines()[-1], arguments
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


def test_a_corpus_that_is_not_there_is_told_before_anything_else(tmp_path):
    said = mlm("train", tmp_path / "nowhere.txt", "--out", tmp_path / "run", code=2).stderr
    assert said == f"mlm: {tmp_path}/nowhere.txt does not exist; check the path of the corpus\n"
    assert not (tmp_path / "run").exists()


def test_a_corpus_too_small_to_hold_any_out_says_so(tmp_path):
    (tmp_path / "one.txt").write_text("One short document.\n")
    said = mlm("train", tmp_path / "one.txt", "--out", tmp_path / "run", "--budget", "1steps", "--model", "tiny").stderr
    assert "no document is held out, so nothing will tell what the model makes of other text; name some with" in said


def test_a_run_that_holds_nothing_out_evaluates_nothing(corpus, tmp_path):
    options = ("--budget", "2steps", "--model", "nano", "--valid", "none")
    mlm("train", corpus, "--out", tmp_path / "run", *options)
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert logged and not any("valid_loss" in line for line in logged)


def test_a_place_where_nothing_may_be_written(corpus, tmp_path, monkeypatch):
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # whoever runs tests as root may write anywhere
    said = mlm("train", corpus, "--out", tmp_path / "run", code=2).stderr.splitlines()[-1]
    assert (
        said
        == f"mlm: {tmp_path / 'run'}: Permission denied; choose a place where you may write, or mend its permissions"
    )


def test_a_damaged_model_is_named(run, tmp_path):
    mlm("export", run, tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    assert "model.safetensors is damaged" in mlm("fill", tmp_path / "m", "a [MASK]", code=2).stderr
    (tmp_path / "m/config.json").write_text("{")
    assert "config.json is damaged" in mlm("fill", tmp_path / "m", "a [MASK]", code=2).stderr


@pytest.mark.parametrize("command", ["demo", "prepare", "train", "evaluate", "fill", "export"])
def test_help_has_an_example(command):
    assert f"Example: mlm {command}" in " ".join(mlm(command, "--help").stdout.split())


def test_a_corpus_cannot_write_to_the_terminal(run):
    done = mlm("fill", run, "a \x1b[2Jcat [bold]sat[/bold] [MASK]")
    assert "\x1b[2J" not in done.stdout and "[bold]" in done.stdout


def test_a_full_disk_is_one_line_and_leaves_nothing(corpus, tmp_path):
    """A file-size limit stands in for the disk: the write fails in the same call, with another number."""
    options = f"--out {tmp_path}/run --budget 3steps {' '.join(SMALL)}"
    limited = f"trap '' XFSZ; ulimit -f 8; exec {sys.executable} -m mlm_pytorch train {corpus} {options}"
    measured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it writes, too
    done = subprocess.run(
        ["bash", "-c", limited], capture_output=True, text=True, timeout=300, check=False, env=measured
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_verify_names_the_file_that_changed(corpus, tmp_path):
    mlm("prepare", corpus, "--out", tmp_path / "store", "--seq-len", "48", "--vocab-size", "384")
    assert "store: as written (2 shards of" in mlm("prepare", "--verify", tmp_path / "store").stdout
    assert json.loads(mlm("prepare", "--verify", tmp_path / "store", "--json").stdout)["documents"] == 400
    shard = tmp_path / "store/train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = mlm("prepare", "--verify", tmp_path / "store", code=2)
    assert "train-00000.arrow does not have the checksum" in done.stderr and done.stderr.count("\n") == 1
    assert "no place for the store is named" in mlm("prepare", corpus, code=2).stderr


def test_mixtures_kinds_and_selections_from_the_command(corpus, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(sentences(20)))
    mix = ("--mix", f"{corpus}=0.75", "--mix", f"{tmp_path / 'other.txt'}=0.25")
    options = ("--model", "tiny", "--seq-len", "48", "--pack-tokens", "512", "--budget", "2steps")
    made = ("--tokenizer", "wordpiece", "--selection", "words")
    done = mlm("train", *mix, "--out", tmp_path / "run", *options, *made)
    assert "tokenizer: wordpiece" in done.stderr and "begun again: " in done.stderr
    assert (tmp_path / "run/model/config.json").is_file()
    cases = [
        (("prepare", corpus, *mix), "are both given; name every part with --mix"),
        (("prepare", "--mix", "a.txt"), "no part of a mixture"),
        (("prepare", corpus, "--tokenizer", "syllables"), "tokenizer kind 'syllables' is unknown"),
        (("prepare", corpus, "--long-documents", "windows", "--overlap", "600"), "overlap 600"),
        (("prepare", *mix, "--drop-duplicates"), "a mixture repeats on purpose"),
    ]
    for arguments, expected in cases:
        done = mlm(*arguments, "--out", tmp_path / "store", code=2)
        assert expected in done.stderr and "Traceback" not in done.stderr, arguments
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["--help"], ["doctor", "text.txt", "--trial-seconds", "0", "--model", "nano"]]
)
def test_output_that_nobody_reads_on_ends_quietly(arguments, tmp_path):
    """As in `mlm train --help | head -1`; whether `print` writes or rich does."""
    (tmp_path / "text.txt").write_text("the cat sat on a mat\n" * 9)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mlm_pytorch", *arguments]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path, env=os.environ | path
    )
    os.close(write)
    said = [line for line in done.stderr.splitlines() if not line.startswith(("reading", "looking", "trying"))]
    assert (done.returncode, said) == (141, [])


def test_messages_hold_nothing_that_a_terminal_obeys(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"\\u001b[31mred": "a"}\n')
    done = mlm("evaluate", tmp_path, "--minimal-pairs", tmp_path / "pairs.jsonl", code=2)
    assert "(its fields: \N{SYMBOL FOR ESCAPE}[31mred)" in done.stderr and "\x1b" not in done.stderr


def test_another_pipe_that_breaks_is_told(monkeypatch, capfd):
    def broken(_command):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("mlm_pytorch.cli.run", broken)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "x.txt"])
    assert stop.value.code == 2 and capfd.readouterr().err == "mlm: [Errno 32] Broken pipe\n"
