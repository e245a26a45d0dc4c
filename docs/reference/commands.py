"""The command line's pages, written from its own parser as the site is built, so that they cannot go stale."""

import argparse
import re
import warnings


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command of `mlm` with its parser, as the command line itself makes them."""
    import tyro

    from mlm_pytorch.cli import Command

    with warnings.catch_warnings():
        # tyro means to drop this view of its parser one day; versions are pinned, and a test would notice.
        warnings.filterwarnings("ignore", message=".*get_parser", category=DeprecationWarning)
        parser = tyro.extras.get_parser(Command, prog="mlm", config=(tyro.conf.UseAppendAction,))
    (commands,) = (action for action in parser._actions if isinstance(action.choices, dict))
    return dict(commands.choices)


def _example(description: str) -> tuple[str, str]:
    """A command's description in words, and its example."""
    words, _, example = description.partition("Example:")
    return " ".join(words.split()), " ".join(example.split())


def _value(action: argparse.Action) -> str:
    """What a value looks like: `5`, a choice of words, a file."""
    if action.nargs == 0:
        return ""
    metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
    return re.sub(r"\{None\}\||None,|,None|\[|\]| \.\.\.", "", metavar)


def _row(action: argparse.Action) -> str:
    said, _, default = (action.help or "").replace("(repeatable)", "*Repeatable.*").rpartition("(default:")
    text = said if said else (action.help or "").replace("(repeatable)", "*Repeatable.*")
    default = default.strip().removesuffix(")").strip() if said else ""
    names = action.option_strings or [action.dest.rpartition(".")[2].upper()]
    value = _value(action) if action.option_strings else ""
    option = ", ".join(f"`{name}`" for name in names if not name.startswith("--no-"))
    value = " · ".join(f"`{choice}`" for choice in value.strip("{}").split(",")) if value else ""
    shown = "" if default in ("None", "False", "", "''") else f"`{default}`"
    cells = [option, value, shown, " ".join(text.split()).replace("|", "\\|")]
    return "| " + " | ".join(cells) + " |"


def command_page(name: str, parser: argparse.ArgumentParser) -> str:
    """The page of one command: what it does, an example, its options with their defaults."""
    words, example = _example(parser.description or "")
    actions = [action for action in parser._actions if action.dest != "help"]
    head = "| option | value | default | what it does |\n| --- | --- | --- | --- |"
    given = [_row(action) for action in actions if not action.option_strings]
    options = [_row(action) for action in actions if action.option_strings]
    parts = [f"# mlm {name}", words, f"```text\n$ {example}\n```"]
    if given:
        parts += ["## Arguments", "\n".join([head, *given])]
    parts += ["## Options", "\n".join([head, *options])]
    parts += ["Options that turn something on are turned off by `--no-…`. Mistakes end with one line and exit code 2."]
    return "\n\n".join(parts) + "\n"


def index_page(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """All commands in one table."""
    rows = []
    for name, parser in parsers.items():
        words, example = _example(parser.description or "")
        rows.append(f"| [`mlm {name}`]({name}.md) | {words} | `{example}` |")
    head = "| command | does | example |\n| --- | --- | --- |"
    told = "Every command has `--help`. `python -m mlm_pytorch` is the same. These pages are written by its parser."
    return "\n\n".join(["# The command line", told, "\n".join([head, *rows])]) + "\n"


def command_pages() -> dict[str, str]:
    """Path below `docs/` -> text, of every page about the command line."""
    parsers = command_parsers()
    pages = {f"reference/cli/{name}.md": command_page(name, parser) for name, parser in parsers.items()}
    return {"reference/cli/index.md": index_page(parsers), **pages}
