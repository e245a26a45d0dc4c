"""`mlm fill` as it is used: on a terminal, in a pipe, with lines that mean harm."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
import torch

from mlm_pytorch.cli import main
from mlm_pytorch.cli.fill import _bar
from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder

TEXTS = ["the cat sat on the mat", "a dog ran to the red house"] * 40
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\x9b31m :smile: [red]the[/red] [MASK]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("model"), train_tokenizer(TEXTS, 320)
    encoder = Encoder(EncoderConfig(320, 32, 48, 2, 2, max_position_embeddings=64, local_attention=8))
    export_encoder(encoder, tokenizer.special, folder, tokenizer.save)
    return folder


class Piped(io.TextIOWrapper):
    """Standard input that holds bytes."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="latin-1")


def fill(capsys, monkeypatch, *arguments, stdin=b""):
    monkeypatch.setattr("sys.stdin", Piped(stdin))
    code = 0
    try:
        main(["fill", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_several_masks_are_told_apart(model, capsys, monkeypatch):
    code, shown, _ = fill(capsys, monkeypatch, model, "the [MASK] sat on [MASK]", "a [MASK]", "--top-k", "3")
    lines = shown.splitlines()
    assert code == 0 and lines[0] == "the [MASK] sat on [MASK]"
    assert [line.strip() for line in lines if "mask " in line] == ["mask 1 of 2", "mask 2 of 2"]
    assert sum("%" in line for line in lines) == 9 and all("▏" in line or "█" in line for line in lines if "%" in line)


@pytest.mark.parametrize(("probability", "cells"), [(1.0, "█" * 24), (0.5, "█" * 12), (1 / 64, "▍"), (1e-9, "▏")])
def test_bars_are_as_long_as_the_candidate_is_likely(probability, cells):
    assert _bar(probability) == cells


def test_candidates_that_look_alike_are_told_apart(model, capsys, monkeypatch):
    """A word with and without the blank before it, and bytes that are parts of characters; in JSON ids do that."""
    special = load_tokenizer(model).special
    count = special.num_tokens - len(special.ids)
    most = ("the [MASK] sat", "--top-k", count)
    _, shown, _ = fill(capsys, monkeypatch, model, *most)
    names = [line.split()[-1] for line in shown.splitlines()[1:]]
    assert len(set(names)) == len(names) == count and "the" in names
    _, shown, _ = fill(capsys, monkeypatch, model, *most, "--json")
    candidates = json.loads(shown)["masks"][0]["candidates"]
    assert {"token", "id", "probability"} == set(candidates[0]) and "he" in {one["token"] for one in candidates}


def test_lines_are_utf_8_whatever_the_terminal_is(model, capsys, monkeypatch):
    stdin = "\ufeffthe [MASK] caf\u00e9\r\n\n\u4e2d\u6587 [MASK]".encode()
    code, shown, _ = fill(capsys, monkeypatch, model, "--file", "-", "--json", stdin=stdin)
    texts = [json.loads(line)["text"] for line in shown.splitlines()]
    assert code == 0 and texts == ["the [MASK] caf\u00e9", "\u4e2d\u6587 [MASK]"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (
            ["--file", "-"],
            b"a [MASK]\ncaf\xe9 [MASK]\n",
            "standard input line 2 is not UTF-8 (invalid continuation byte at its byte 4)",
        ),
        (["--file", "-"], b"a [MASK]\n\nno gap\n", "standard input line 3: no mask in 'no gap'"),
        (["--file", "-"], b"\n \n", "standard input holds no text"),
        (["caf\udce9 [MASK]"], b"", "the text is not Unicode (half a character at 4); write it in UTF-8"),
        (["caf\udce9 [MASK]", "--json"], b"", "the text is not Unicode"),
    ],
)
def test_mistakes_are_one_line(model, capsys, monkeypatch, arguments, stdin, message):
    code, _, said = fill(capsys, monkeypatch, model, *arguments, stdin=stdin)
    assert code == 2 and said.count("\n") == 1 and message in said


def test_a_text_cannot_write_to_the_terminal(model, capsys, monkeypatch):
    _, shown, _ = fill(capsys, monkeypatch, model, "--file", "-", stdin=HOSTILE.encode())
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert ":smile: [red]the[/red]" in shown.replace("\n", "")


def test_a_closed_standard_output_is_no_fault(model):
    command = [sys.executable, "-m", "mlm_pytorch", "fill", str(model), "a [MASK]"]
    closed = ["sh", "-c", '"$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bars_on_a_terminal_of_an_older_encoding(model):
    command = [sys.executable, "-m", "mlm_pytorch", "fill", str(model), "a [MASK]"]
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=env, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and b"\\u258f" in done.stdout and b"%" in done.stdout


def test_a_conversation_on_a_terminal(model):
    """A real terminal: colour, what is typed is answered, mistakes do not end it, the end of the input does."""
    command = [sys.executable, "-m", "mlm_pytorch", "fill", str(model), "--top-k", "2"]
    terminal, inside = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "PYTHONUTF8": "1"}
    child = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=env, start_new_session=True)
    os.close(inside)
    shown = b""

    def until(mark: bytes) -> None:
        nonlocal shown
        start, end = len(shown), time.monotonic() + 120
        while mark not in shown[start:]:
            assert time.monotonic() < end, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 1 << 16)

    until(b"> ")
    for text in (b"the [MASK] sat\n", b"no gap :smile:\n", b"a [MASK] \xf0\n"):
        os.write(terminal, text)
        until(b"> ")
    os.write(terminal, b"\x04")
    assert child.wait(timeout=120) == 0
    os.close(terminal)
    said = shown.decode(errors="replace")
    assert "\x1b[36m" in said and "%" in said and "no mask in 'no gap :smile:'" in said and "Traceback" not in said
