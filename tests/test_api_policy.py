"""The page that says what is public names what the package exports, no more and no less."""

import importlib
import inspect
import pkgutil
import re
import typing
from pathlib import Path

import tyro

import mlm_pytorch
from mlm_pytorch import MLM
from mlm_pytorch.cli import Command

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "api_policy.md").read_text(encoding="utf-8")
SUBCOMMAND = type(tyro.conf.subcommand("any"))
# `mlm_pytorch.data` exports nothing by itself, since its parts load different libraries.
OF_DATA = {
    "mlm_pytorch.data.corpus": ["documents"],
    "mlm_pytorch.data.prepare": ["prepare", "PrepareReport"],
    "mlm_pytorch.data.store": ["TokenStore"],
}


def listed(page):
    """The names under each heading that is a module's: all in backticks that are names and nothing more."""
    sections = re.split(r"^#{2,4} ", page, flags=re.MULTILINE)
    found = {
        section.split("`")[1]: re.findall(r"`(\w+)`", section.partition("\n")[2])
        for section in sections
        if section.startswith("`mlm_pytorch")
    }
    return {module: names for module, names in found.items() if names}


def exported():
    """`__all__` of the package and of every room that has one, and what is public of the rooms of the data road."""
    rooms = (one.name for one in pkgutil.walk_packages(mlm_pytorch.__path__, "mlm_pytorch.") if one.ispkg)
    modules = map(importlib.import_module, ("mlm_pytorch", *rooms))
    return {module.__name__: list(module.__all__) for module in modules if hasattr(module, "__all__")} | OF_DATA


def test_the_page_lists_what_the_package_exports():
    assert listed(PAGE) == exported()


def test_every_exported_name_is_there_and_documented():
    for module, names in exported().items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert inspect.getdoc(value), f"{module}.{name} says nothing of itself"


def test_the_page_lists_the_commands():
    section = PAGE.partition("## The commands\n")[2]
    parts = [typing.get_args(one)[1:] for one in typing.get_args(Command)]
    names = [note.name for notes in parts for note in notes if isinstance(note, SUBCOMMAND)]
    assert re.findall(r"`(\w+)`", section) == names


def test_the_seeds_arguments_stay():
    parameters = list(inspect.signature(MLM).parameters.values())
    first = [(one.name, one.default) for one in parameters[:8] if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert first == [
        ("transformer", inspect.Parameter.empty),
        ("mask_prob", 0.15),
        ("replace_prob", 0.9),
        ("num_tokens", None),
        ("random_token_prob", 0.0),
        ("mask_token_id", 2),
        ("pad_token_id", 0),
        ("mask_ignore_token_ids", ()),  # the seed's list, which nobody can change
    ]
