"""`mlm play` before anything is served: what is refused, and how."""

import socket
import sys
from pathlib import Path

import pytest
import torch

from mlm_pytorch.cli import main
from mlm_pytorch.cli import play as cli_play
from mlm_pytorch.cli.factory import build, import_factory, save_built, sizes_for
from mlm_pytorch.cli.play import short_names
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.play.reading import SurpriseSum, candidates, read, surprise_batches, token_surprises
from mlm_pytorch.play.server import address_of, listen

FACTORY = """
from torch import nn

def build(num_tokens, max_seq_len, pad_token_id):
    return nn.Sequential(nn.Embedding(num_tokens, 16), nn.Linear(16, num_tokens))
"""


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["play", *map(str, arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    return said


def test_mistakes_are_one_line(tmp_path, capsys):
    assert refused(capsys).startswith("mlm: no model is named")
    assert "is named twice" in refused(capsys, tmp_path, tmp_path)
    assert refused(capsys, tmp_path, "--port", "0").endswith("name a run or a Hugging Face folder\n")
    assert "--port 70000 is outside 0 to 65535" in refused(capsys, tmp_path, "--port", "70000")
    assert "cannot listen on 203.0.113.1" in refused(capsys, tmp_path, "--host", "203.0.113.1")
    assert "is no address" in refused(capsys, tmp_path, "--host", "no name")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, tmp_path, "--port", taken.getsockname()[1])
    assert "ddress already in use" in said and said.count("\n") == 1


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["play", "--help"])
    assert not stop.value.code and "Example: mlm play" in " ".join(capsys.readouterr().out.split())


def test_a_warning_where_others_can_reach_the_page(tmp_path, capsys):
    said = refused(capsys, tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert said.startswith("warning: whoever reaches 0.0.0.0 can use this page")


@pytest.fixture
def own_run(tmp_path, monkeypatch) -> Path:
    """A run of a module of the user's own, where the module is found."""
    (tmp_path / "played_models.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 20, 300)
    sizes = sizes_for(tokenizer.special, 32)
    torch.manual_seed(0)
    module = build(import_factory("played_models:build"), "played_models:build", sizes)
    save_built(module, "played_models:build", sizes, tmp_path / "run/model", tokenizer.save)
    monkeypatch.delitem(sys.modules, "played_models")  # as in a process that has not yet imported it
    return tmp_path / "run"


def test_a_run_of_ones_own_module_is_played_with_its_factory(own_run, capsys, monkeypatch):
    said = refused(capsys, own_run, "--port", "0")
    assert said.endswith("no code is run because a folder names it; add --factory played_models:build\n")
    assert "played_models" not in sys.modules
    served = {}
    monkeypatch.setattr("mlm_pytorch.play.server.serve", lambda models, *_: served.update(models))
    main(["play", str(own_run), "--port", "0", "--factory", "played_models:build"])
    _, [reading] = read("the cat sat", [served["run"]])
    assert len(candidates(reading, {1: None}, 3)[1]) == len(reading.tokens[1])
    total = SurpriseSum(reading)
    done = [each for batch in surprise_batches(reading) for each in total.add(token_surprises(reading, batch))]
    assert [each.word for each in done] == [0, 1, 2] and all(each.nats > 0 for each in done)


def test_the_extra_is_named_where_it_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_play, "find_spec", lambda name: None)
    assert refused(capsys, tmp_path) == (
        "mlm: mlm play needs starlette and uvicorn; run pip install '.[play]' in the checkout\n"
    )


def test_names_are_as_short_as_tells_them_apart():
    assert short_names([Path("/runs/one"), Path("/runs/two")]) == ["one", "two"]
    assert short_names([Path("/a/run"), Path("/b/run"), Path("/other")]) == ["a/run", "b/run", "/other"]
    assert short_names([Path("/a/\x1b[2J")]) == ["\u241b[2J"]


def test_addresses():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}/"
        assert address_of("0.0.0.0", listener) == f"http://127.0.0.1:{port}/"
        assert address_of("::1", listener) == f"http://[::1]:{port}/"
