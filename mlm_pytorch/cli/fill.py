"""`mlm fill`: candidates for masked words, from arguments, a file, or a conversation."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mlm_pytorch.cli.models import OpenedModel, open_model, printable
from mlm_pytorch.cli.options import FillConfig
from mlm_pytorch.evaluation import Filled, fill


def fill_command(config: FillConfig) -> None:
    """`mlm fill`."""
    converses = not config.texts and config.file is None and sys.stdin.isatty()
    if not config.texts and config.file is None and not converses:
        raise ValueError("no text is given; write one with [MASK] where a word is to be found, or name a --file")
    opened = open_model(config.model, config.factory)
    console = Console(highlight=False, markup=False)
    if converses:
        _converse(opened, config, console)
        return
    for text in config.texts:
        _show(fill(opened.model, opened.tokenizer, text, config.top_k), config, console)
    if config.file is not None:
        for number, line in _lines(config.file):
            try:
                filled = fill(opened.model, opened.tokenizer, line, config.top_k)
            except ValueError as error:
                raise ValueError(f"{config.file} line {number}: {error}") from None
            _show(filled, config, console)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    found = False
    try:
        with sys.stdin if str(path) == "-" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found = True
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start:,}); convert it") from None
    if not found:
        raise ValueError(f"{path} holds no text; write one with [MASK] on each line")


def _converse(opened: OpenedModel, config: FillConfig, console: Console) -> None:
    """Ask for texts until an empty line or the end of the input; a text that cannot be filled is no end."""
    console.print("Write a text with [MASK] where a word is to be found; an empty line ends.")
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            return
        try:
            _show(fill(opened.model, opened.tokenizer, text, config.top_k), config, console)
        except ValueError as error:
            console.print(printable(str(error)))


def _show(filled: Filled, config: FillConfig, console: Console) -> None:
    if config.json:
        print(json.dumps(asdict(filled), ensure_ascii=False))
        return
    console.print(Text(printable(filled.text), style="bold"))
    for mask in filled.masks:
        for candidate in mask.candidates:
            bar = "█" * round(24 * candidate.probability) or "▏"
            line = Text(f"  {candidate.probability:6.1%} ")
            line.append(f"{bar:<24} ", style="cyan")
            console.print(line.append(printable(candidate.token)))
        if mask is not filled.masks[-1]:
            console.print()
