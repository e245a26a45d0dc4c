"""A run's folder is read as far as it goes."""

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from mlm_pytorch.cli import parse
from mlm_pytorch.huggingface import load_encoder
from mlm_pytorch.report.facts import RunFacts, budgets, command, count_parameters, find, flat, read_run, version
from mlm_pytorch.training.config import TrainConfig


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    for folder, says in ((tmp_path / "none", "is no folder"), (tmp_path, "is not a run")):
        with pytest.raises(ValueError, match=says) as error:
            read_run(folder)
        assert "\n" not in str(error.value)


def test_a_whole_run(run):
    facts = read_run(run)
    assert facts.name == "first" and facts.notes == () and facts.manifest is not None
    assert facts.model["model_type"] == "modernbert"
    assert facts.num_parameters == sum(p.numel() for p in load_encoder(run).parameters())


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "\x00", "{}"])
def test_damaged_files_become_notes(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "run.json").write_text(content)
    facts = read_run(tmp_path)
    assert facts.config == {} and facts.recorded == {} and facts.manifest is None and facts.notes
    assert command(facts) == "mlm train"
    (tmp_path / "weights").write_text(content)
    assert count_parameters(tmp_path / "weights") is None


def test_the_command_is_rebuilt_from_what_differs_from_the_defaults(run):
    facts = read_run(run)
    words = command(facts).split(" ")
    assert words[:2] == ["mlm", "train"] and "--seq-len" in words and "--mask-prob" not in words
    parsed = parse(shlex.split(command(facts))[1:])
    assert yaml.safe_load(parsed.to_yaml()) == facts.config | {"chosen": []}


def test_the_recorded_command_wins(tmp_path):
    (tmp_path / "config.yaml").write_text("model: tiny\n")
    (tmp_path / "run.json").write_text(json.dumps({"sittings": [{"command": ["mlm", "train", "a b"]}]}))
    assert command(read_run(tmp_path)) == "mlm train 'a b'"
    for program in ("mlm", "/opt/bin/mlm", "/opt/lib/mlm_pytorch/__main__.py"):
        (tmp_path / "run.json").write_text(json.dumps({"command_line": f"{program} train x"}))
        assert command(read_run(tmp_path)) == "mlm train x"


def test_no_page_tells_the_signature_of_an_address(tmp_path):
    signed, weight = "https://me:secret@host/a b.jsonl?X-Signature=secret", "=0.5"
    commands = [shlex.join(["mlm", "train", signed, "--mix", signed + weight, f"--mix={signed}{weight}", "--out", "x"])]
    facts = recorded(tmp_path, *commands, corpus=[signed], mix=[signed + weight])
    bare = "https://host/a b.jsonl"
    assert shlex.split(command(facts))[2:] == [bare, "--mix", bare + weight, f"--mix={bare}{weight}", "--out", "x"]
    assert facts.config == {"corpus": [bare], "mix": [bare + weight]}
    (tmp_path / "run.json").unlink()
    assert shlex.split(command(read_run(tmp_path))) == ["mlm", "train", bare, "--mix", bare + weight]


def recorded(folder: Path, *commands: str, **config) -> RunFacts:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"sittings": [{"command": command} for command in commands]}))
    return read_run(folder)


def test_the_command_says_what_the_run_settled(tmp_path):
    """Which another machine, or another budget, would settle otherwise."""
    config = {"chosen": ["lr", "model", "pack_tokens"], "lr": 0.004, "model": "nano", "pack_tokens": 2048}
    facts = recorded(tmp_path, "/opt/bin/mlm train a.txt --out runs/a --budget 20m", **config)
    told = command(facts)
    assert told == "mlm train a.txt --out runs/a --budget 20m --lr 0.004 --model nano --pack-tokens 2048"
    parsed = parse(shlex.split(told)[1:])
    assert isinstance(parsed, TrainConfig) and (parsed.lr, parsed.model, parsed.pack_tokens) == (0.004, "nano", 2048)
    facts = recorded(tmp_path, "mlm train a.txt --out runs/a --lr 0.004", **config)
    assert command(facts) == "mlm train a.txt --out runs/a --lr 0.004 --model nano --pack-tokens 2048"
    assert command(recorded(tmp_path, "mlm demo --out runs/a", **config)) == "mlm demo --out runs/a"


def test_budgets_are_told_where_they_changed(tmp_path):
    sittings = ("mlm train a --budget 20steps", "mlm train a --budget=40steps", "mlm train a --budget 40steps", "odd '")
    assert budgets(recorded(tmp_path, *sittings)) == ["20steps", "40steps"]
    assert budgets(recorded(tmp_path)) == [] == budgets(recorded(tmp_path, "mlm train a"))


def test_a_checkout_has_a_version_to_tell(monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert version()[0].isdigit()
    monkeypatch.setattr("importlib.metadata.version", missing)
    assert version() == "(a checkout)"


def test_recorded_facts_of_one_sitting():
    assert list(flat({"sittings": [{"cores": 2}]})) == [("cores", "2")]


def test_recorded_facts_are_told_flat_without_credentials():
    recorded = {
        "sittings": [{"device": "old"}, {"device": "H100", "fast": True, "memory_bytes": 2**31}],
        "versions": {"torch": "2.13.0"},
        "environment": {"HF_TOKEN": "hf_secret", "flags": ["a", "b"]},
        "nothing": None,
    }
    told = dict(flat(recorded))
    assert told == {
        "sittings": "2, of which this is the last:",
        "device": "H100",
        "fast": "yes",
        "memory": "2.0 GiB",
        "versions · torch": "2.13.0",
        "environment · flags": "a, b",
    }
    assert find(recorded, "device") == "H100" and find(recorded, "absent") is None
