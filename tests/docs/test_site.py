"""What the site is made of: generated pages that miss nothing, and a navigation that reaches every page."""

import ast
import dataclasses
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from mlm_pytorch.cli import Command

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlm_pytorch"


@pytest.fixture
def reference(monkeypatch):
    """The scripts beside the reference's pages, which mkdocs imports as the site is built."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reference"))
    import commands
    import errors

    yield commands, errors
    for name in ("commands", "errors"):
        del sys.modules[name]


def test_every_option_of_every_command_is_on_its_page(reference):
    pages = reference[0].command_pages()
    for config, command in (get_args(command) for command in get_args(Command)):
        page = pages[f"reference/cli/{command.name}.md"]
        assert f"$ mlm {command.name}" in page  # the example
        for field in dataclasses.fields(config):
            option = field.name.replace("_", "-")
            if field.name != "chosen":  # what a run keeps for itself
                assert f"`--{option}`" in page or f"`{option.upper()}`" in page, option
        assert f"]({command.name}.md)" in pages["reference/cli/index.md"]


def test_a_command_page_says_values_and_defaults(reference):
    page = reference[0].command_pages()["reference/cli/train.md"]
    assert "| `--budget` | `STR` | `20m` | How long to train: 20m, 3h, 5000steps, 2epochs or 1Btokens. |" in page
    assert "| `--schedule` | `wsd` · `linear` · `cosine` | `wsd` |" in page


def test_every_error_of_the_package_is_found(reference):
    every, foreign = reference[1].messages(PACKAGE)
    assert {entry.partition(":")[0] for entry in foreign} <= {
        "mlm_pytorch/cli/__init__.py",  # what the parser says
        "mlm_pytorch/training/checkpoint.py",  # what the system says
    }
    found = {(message.module, message.line) for message in every}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ValueError" and node.args:
                assert (module, node.lineno) in found or any(entry.startswith(module) for entry in foreign)


def test_messages_are_read_from_source(reference, tmp_path):
    package = tmp_path / "mlm_pytorch"
    (package / "data").mkdir(parents=True)
    (package / "data" / "a.py").write_text(
        "LATE = 'no {what}; wait'\n"
        "def named(x):\n    return f'{x} is | bad; mend it'\n"
        "def f(path, n):\n"
        "    rule = 'give more' if n else 'give less'\n"
        "    if n: raise ValueError(f'{path.name} has {len(n):,} rows; {rule}')\n"
        "    if path: raise ValueError(named(n))\n"
        "    raise OSError(LATE.format(what='tea'))\n"
    )
    every, foreign = reference[1].messages(package)
    texts = [message.text for message in every]
    assert texts == ["<name> has <number of n> rows; give more / give less", "<x> is | bad; mend it", "no <what>; wait"]
    assert foreign == []
    table = reference[1].error_tables(package)
    assert "### Corpora, tokenizers and stores" in table
    assert "| &lt;x&gt; is &#124; bad | mend it |" in table


def test_every_room_with_errors_has_a_heading(reference):
    every, _ = reference[1].messages(PACKAGE)
    assert {message.room for message in every} <= set(reference[1].ROOMS)


def pages_of(nav) -> set[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(pages_of, nav.values() if isinstance(nav, dict) else nav))


def test_the_navigation_reaches_every_page(reference):
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert written | set(reference[0].command_pages()) <= named


def test_worked_cases_of_docstrings_are_fenced(monkeypatch):
    pytest.importorskip("griffe", reason="only where make docs has been run")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reference"))
    from doctests import fenced

    case = "    >>> f(1)\n    [1.0, 0.5]\n    >>> f(\n    ...     2)\n"
    written = f"Adds.\n\nExample:\n{case}\n    And so on.\n"
    assert fenced(written) == f"Adds.\n\nExample:\n    ```pycon\n{case}    ```\n\n    And so on.\n"
