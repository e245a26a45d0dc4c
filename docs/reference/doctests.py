"""Shows the worked cases of docstrings as code: `>>> …`, up to a blank line, becomes a fenced block."""

import re

import griffe

CASE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)[^ \n].*|\n(?P=indent) +\S.*)*", re.M)


def fenced(docstring: str) -> str:
    """A docstring with its worked cases in fences."""
    return CASE.sub(lambda case: f"{case['indent']}```pycon\n{case[0]}\n{case['indent']}```", docstring)


class Doctests(griffe.Extension):
    """Fences the worked cases of every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:  # noqa: ARG002, D102 -- griffe's name and arguments
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
