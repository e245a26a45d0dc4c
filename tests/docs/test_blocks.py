"""Every code block of the README and the documentation is run, or says why not; outputs shown are outputs seen."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_blocks import Block, blocks, missing_line, pages, replacements

ROOT = Path(__file__).parents[2]
PAGES = [path.relative_to(ROOT).as_posix() for path in pages(ROOT)]
MOST_SKIPPED = 0.2  # of the blocks that could be run


def of_page(name: str) -> list[Block]:
    return blocks((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[subprocess.Popen]:
    """The process that runs pages, started when the first page asks for it."""
    script = ROOT / "tests" / "run_pages.py"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(ROOT), str(tmp_path_factory.mktemp("pages"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
    )
    yield process
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.mark.parametrize(
    "name", [name for name in PAGES if any(block.kind in ("run", "file") for block in of_page(name))]
)
def test_every_block_of_a_page_runs(name, runner):
    runner.stdin.write(f"{name}\n")
    runner.stdin.flush()
    answer = json.loads(runner.stdout.readline())
    assert answer["error"] is None, answer["error"]


def test_there_is_no_third_case():
    found = [
        f"{name}:{block.line}: a {block.language or 'plain'} block is neither run nor says why not"
        for name in PAGES
        for block in of_page(name)
        if block.kind == "unknown"
    ]
    found += [
        f"{name}:{block.line}: shows output; say <!-- output --> or <!-- output not compared: REASON -->"
        for name in PAGES
        for block in of_page(name)
        if block.kind == "run" and block.shows_output()
        if "output" not in block.said and not block.said.get("output not compared")
    ]
    assert found == []


def test_few_blocks_are_not_run():
    kinds = [block.kind for name in PAGES for block in of_page(name) if block.language != "setup"]
    skipped, ran = kinds.count("skip"), kinds.count("run") + kinds.count("file")
    assert skipped <= MOST_SKIPPED * (skipped + ran), f"{skipped} of {skipped + ran} blocks are not run"


PAGE = """
<!-- run page with: 20m -> 2steps -->
<!-- setup
$ cp a b
x = 1
-->

<!-- not run: needs two machines -->
```console
$ torchrun
```

<!-- run with: (8, 1024) -> (2, 16); depth=6 -> depth=1 -->

```python
f(8, 1024), depth=6
```

- in a list

  <!-- output -->
  ```console
  $ mlm train \\
      --budget 20m   # twenty
  loss 3.2
  $ mlm fill
  ```

<!-- save as: a/b.yaml -->
```yaml
x: 1
```
"""


def test_a_page_is_read_as_its_comments_say():
    setup, skipped, python, console, saved = blocks(PAGE)
    assert (setup.language, setup.code) == ("setup", "$ cp a b\nx = 1")
    assert (skipped.kind, skipped.said) == ("skip", {"not run": "needs two machines"})
    assert python.code == "f(2, 16), depth=1\n"
    assert console.commands() == [
        ("mlm train \\\n    --budget 2steps   # twenty", ["loss 3.2"]),
        ("mlm fill", []),
    ]
    assert (saved.kind, saved.said["save as"]) == ("file", "a/b.yaml")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- run with: a -> b -->\n```python\nc\n```\n", "has no 'a' to replace"),
        ("<!-- run page with: a -> b -->\n```python\nc\n```\n", "no block of the page has 'a'"),
        ("<!-- run with: a b -->\n```python\nc\n```\n", "written OLD -> NEW"),
        ("<!-- not run: why -->\ntext\n```python\nc\n```\n", "stand before no fence, but 'text'"),
        ("```python\nc\n```\n<!-- output -->\n", "at the end stand before no fence"),
    ],
)
def test_a_comment_that_does_nothing_is_an_error(page, message):
    with pytest.raises(AssertionError, match=message):
        blocks(page)


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("```python\n```\n", "run"),
        ("```pycon\n```\n", "unknown"),
        ("```shell\n```\n", "unknown"),
        ("<!-- not run: -->\n```python\n```\n", "unknown"),
        ("```text\n```\n", "shown"),
        ("<!-- not run: x -->\n```bash\n```\n", "skip"),
    ],
)
def test_what_becomes_of_a_block(page, kind):
    (block,) = blocks(page)
    assert block.kind == kind


def test_output_is_compared_loosely():
    printed = "step 12  loss 7.21\n  85.2% ███████     self\nsaved runs/mine"
    assert missing_line(["step 3 loss 5.01", " 9.0% ██  self", "saved …"], printed) is None
    assert missing_line(["…", "saved runs/mine"], printed) is None
    assert missing_line(["step 3 accuracy 5.01"], printed) == "step 3 accuracy 5.01"
    assert missing_line(["saved runs/mine", "step 1 loss 1"], printed) == "step 1 loss 1"


def test_replacements():
    assert replacements(" a -> b; --x 1 -> --x 2 ") == [("a", "b"), ("--x 1", "--x 2")]


FAILS = {
    "raises.md": ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
    "exit.md": ("```console\n$ mlm fill nowhere x\n```\n", "ended with exit code 2, not 0"),
    "shell.md": ("```console\n$ true && false\n```\n", "ended with exit code 1"),
    "pip.md": ("```console\n$ pip install left-pad\n```\n", "a page does not run pip"),
    "output.md": ("<!-- output -->\n```console\n$ echo a\nb\n```\n", "which was not printed:\nb"),
    "text.md": ("```python\nprint(1)\n```\n<!-- output -->\n```text\na\n```\n", "which was not printed:\na"),
    "calm.md": ("<!-- raises: ValueError -->\n```python\n1\n```\n", "raises no ValueError"),
    "other.md": ("<!-- raises: ValueError -->\n```python\n1 / 0\n```\n", "ZeroDivisionError"),
    "dies.md": ("```python\nimport os; os._exit(3)\n```\n", "ended with status 3"),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_block_that_fails_fails_its_page(name, runner, tmp_path):
    page, message = FAILS[name]
    (tmp_path / name).write_text(page)
    runner.stdin.write(f"{tmp_path / name}\n")
    runner.stdin.flush()
    assert message in json.loads(runner.stdout.readline())["error"]
