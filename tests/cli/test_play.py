"""`mlm play` before anything is served: what is refused, and how."""

import socket
from pathlib import Path

import pytest

from mlm_pytorch.cli import main
from mlm_pytorch.cli import play as cli_play
from mlm_pytorch.cli.play import short_names
from mlm_pytorch.play.server import address_of, listen


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


def test_the_extra_is_named_where_it_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_play, "find_spec", lambda name: None)
    assert refused(capsys, tmp_path) == ("mlm: mlm play needs starlette and uvicorn; pip install 'mlm-pytorch[play]'\n")


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
