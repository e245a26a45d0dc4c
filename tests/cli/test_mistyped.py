"""Arguments that cannot be read are told in one line, with what to write instead."""

import re

import pytest

from mlm_pytorch.cli import parse


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (  # as a shell makes of --valid held/*.jsonl
            "train c.jsonl --valid held/a.jsonl held/b.jsonl held/c.jsonl --out x",
            "held/b.jsonl stands behind --valid, which takes one value each time; write --valid held/a.jsonl --valid "
            "held/b.jsonl",
        ),
        (
            "evaluate run --data=a b",
            "b stands behind --data, which takes one value each time; write --data a --data b",
        ),
        (
            "report one --out page.html two",
            "two stands behind --out page.html, which takes one value; write it before all options",
        ),
        ("evaluate one --json two", "two stands behind --json, which takes no value; write it before all options"),
        (
            "evaluate --json one --data=a b",
            "b stands behind --data, which takes one value each time; write --data a --data b",
        ),
        ("evaluate one --json=yes", "yes stands behind --json, which takes no value; write it before all options"),
        (
            "evaluate one two --json on --data b c",
            "on stands behind --json, which takes no value; write it before all options",
        ),
        ("export one two three", "three is one value too many for mlm export; mlm export --help says what it takes"),
        ("demo here", "here is one value too many for mlm demo; mlm demo --help says what it takes"),
        ("evaluate one -x", "mlm evaluate has no option -x; mlm evaluate --help lists all"),
    ],
)
def test_a_value_that_nothing_takes(arguments, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse(arguments.split())
