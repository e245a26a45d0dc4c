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
    ],
)
def test_a_second_value_behind_an_option(arguments, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse(arguments.split())
