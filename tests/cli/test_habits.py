"""The options of `run_mlm.py`, answered by those of `mlm train`."""

import re
from pathlib import Path

import pytest

from mlm_pytorch.cli import main, parse
from mlm_pytorch.cli.habits import LEAVE_OUT, WRITE, explain_habits

OLD = "--model_name_or_path=bert --train_file x.txt --line_by_line --max_seq_length 128 --do_eval --output_dir out"


def test_each_option_is_answered_with_its_counterpart(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *OLD.split()])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "mlm: mlm train has other names for run_mlm.py's options; write --model for --model_name_or_path, the file's "
        "name alone for --train_file, --seq-len for --max_seq_length, --out for --output_dir; leave out --line_by_line "
        "(a line of a .txt is a document), --do_eval (held-out text is always measured); docs/moving.md has all\n"
    )


def test_other_mistakes_and_other_commands_are_told_as_before():
    assert explain_habits(["evaluate", "runs/mine", "--max_seq_length", "128"]) is None
    assert explain_habits(["train", "x.txt", "--out", "run", "--no-such-thing"]) is None
    assert explain_habits([]) is None
    with pytest.raises(ValueError, match="mlm train has no option --no-such-thing; "):
        parse(["train", "x.txt", "--out", "run", "--no-such-thing"])


def test_the_table_of_moving_md_has_every_option():
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text(encoding="utf-8")
    section = page.split("## From `run_mlm.py`")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    told = {name for row in rows for name in re.findall(r"--(\w+)", row)}
    same_name = {"seed", "weight_decay"}
    asked = {*WRITE, *LEAVE_OUT} - {"epochs", "batch_size", "steps", "resume"}  # of other programs
    assert asked - told == set()
    assert told - asked - same_name == set()


def test_what_is_answered_exists():
    options = set(re.findall(r"--[a-z-]+", " ".join(WRITE.values())))
    known = parse(["train", "x.txt", "--out", "run"])
    assert {option[2:].replace("-", "_") for option in options} <= set(vars(known))
