"""`mlm doctor` as a user meets it."""

import json

import pytest

from mlm_pytorch.cli import main


def run(*arguments: str) -> int:
    try:
        main(["doctor", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def options(tokenizer_folder) -> list[str]:
    return ["--tokenizer", str(tokenizer_folder), "--trial-seconds", "0"]


def test_a_clean_corpus_exits_with_0(write, texts, options, capsys):
    assert run(write(texts[:200]), *options) == 0
    shown = capsys.readouterr().out
    assert "checks are green" in shown
    assert "0 red" in shown
    assert "what is to be predicted in [brackets]" in shown


def test_red_exits_with_1_and_shows_the_text_as_it_is(write, texts, options, capsys):
    dirty = [f"\x1b[31m[bold red]{text}[/nonsense]" if i % 50 == 0 else text for i, text in enumerate(texts[:200])]
    assert run(write(dirty), *options) == 1
    shown = capsys.readouterr().out
    assert "✗ Control characters" in shown
    assert "remedy: strip them" in shown
    assert "[bold red]" in shown
    assert "\x1b[31m" not in shown


def test_json(write, texts, options, capsys):
    assert run(write(texts[:200]), *options, "--json", "--ranks", "8") == 0
    out = capsys.readouterr().out
    report = json.loads(out)
    assert report["level"] in ("green", "yellow")
    assert report["read"]["documents_read"] == 200
    assert {"check", "level", "title", "seen", "why", "remedy", "value", "examples"} == set(report["findings"][0])
    assert [plan["layout"] for plan in report["plans"]] == ["DDP", "FSDP2", "hybrid"]
    assert report["samples"][0]["tokens"][0] == {"text": "[CLS]", "shown": None, "selected": False}


def test_a_plan_needs_no_corpus(capsys):
    assert run("--model", "base", "--ranks", "8", "--ranks", "64") == 0
    shown = capsys.readouterr().out
    assert shown.count("FSDP2") == 2


def test_mistakes_exit_with_2(capsys):
    assert run() == 2
    assert capsys.readouterr().err == (
        "mlm: no corpus is named; give files, globs, folders, a store, or --ranks for a plan alone\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trial-seconds", "-1"), "mlm: --trial-seconds -1.0 is no length of time; 10 is usual, 0 leaves it out\n"),
        (("--trial-seconds", "nan"), "mlm: --trial-seconds nan is no length of time; 10 is usual, 0 leaves it out\n"),
        (("--ranks", "8", "--ranks", "0"), "mlm: --ranks 0 is too small; give at least 1\n"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(write, texts, capsys, arguments, message):
    assert run(write(texts[:200]), "--model", "tiny", *arguments) == 2
    assert capsys.readouterr().err == message
