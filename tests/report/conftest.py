"""A small run on a corpus that would like to be HTML."""

import json
import random
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

from mlm_pytorch.cli import main

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1> {{ 7*7 }} & <!-- --> ]]>"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "its", "red", "house", "by", "old", "river"]


def write(path: Path, count: int) -> Path:
    draw = random.Random(count)
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(draw.choices(WORDS, k=draw.randint(8, 40)))
            source = "<i>source</i>" if number % 2 else "plain"
            file.write(json.dumps({"text": f"{HOSTILE} {text}" if number % 3 else text, "source": source}) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "corpus <b>&amp;`|.jsonl", 400)


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    out, valid = folder / "first", write(folder / "valid.jsonl", 60)
    small = ("--model", "tiny", "--seq-len", "160", "--pack-tokens", "512", "--vocab-size", "400")
    with redirect_stderr(StringIO()):
        main(["train", str(corpus), "--valid", str(valid), "--out", str(out), "--budget", "6steps", *small])
    (out / "run.json").unlink()  # it tells how these tests were started; those of the page bring records of their own
    (out / "report.html").unlink()
    return out
