"""`mlm fill`: candidates for masked words, from arguments, a file, or a conversation."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mlm_pytorch.cli.models import OpenedModel, open_model
from mlm_pytorch.cli.options import FillConfig
from mlm_pytorch.cli.terminal import printable
from mlm_pytorch.evaluation import Filled, fill
from mlm_pytorch.evaluation.fill import names_apart

BAR_CELLS = 24  # of a candidate that is certain
EIGHTHS = " ▏▎▍▌▋▊▉"  # the last cell of a bar, in eighths of its width


def fill_command(config: FillConfig) -> None:
    """`mlm fill`."""
    converses = not config.texts and config.file is None and sys.stdin.isatty()
    if not config.texts and config.file is None and not converses:
        raise ValueError("no text is given; write one with [MASK] where a word is to be found, or name a --file")
    opened = open_model(config.model, config.factory)
    console = Console(highlight=False, markup=False, emoji=False)
    if converses:
        _converse(opened, config, console)
        return
    for text in config.texts:
        _show(fill(opened.model, opened.tokenizer, text, config.top_k), opened, config, console)
    if config.file is not None:
        for number, line in _lines(config.file):
            try:
                filled = fill(opened.model, opened.tokenizer, line, config.top_k)
            except ValueError as error:
                raise ValueError(f"{_named(config.file)} line {number:,}: {error}") from None
            _show(filled, opened, config, console)


def _named(path: Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; UTF-8 whatever the terminal's encoding is."""
    found = False
    with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{_named(path)} line {number:,} is not UTF-8 ({error.reason} at its byte {error.start + 1:,}); "
                    "convert it"
                ) from None
            if text.strip():
                found = True
                yield number, text
    if not found:
        raise ValueError(f"{_named(path)} holds no text; write one with [MASK] on each line")


def _converse(opened: OpenedModel, config: FillConfig, console: Console) -> None:
    """Ask for texts until an empty line or the end of the input; a text that cannot be filled is no end."""
    with suppress(ImportError):  # some systems lack it
        import readline  # noqa: F401 -- with it, `input` knows arrow keys and what was written before
    console.print("Write a text with [MASK] where a word is to be found; an empty line ends.")
    while True:
        try:
            text = input("> ")
            if not text.strip():
                return
            _show(fill(opened.model, opened.tokenizer, text, config.top_k), opened, config, console)
        except EOFError:
            console.print()  # what comes next on this terminal begins a line of its own
            return
        except ValueError as error:
            console.print(printable(str(error)))


def _show(filled: Filled, opened: OpenedModel, config: FillConfig, console: Console) -> None:
    if config.json:
        print(json.dumps(asdict(filled), ensure_ascii=False))
        return
    console.print(Text(printable(filled.text), style="bold"))
    several = len(filled.masks) > 1
    for number, mask in enumerate(filled.masks, 1):
        if several:
            console.print(Text(f"  mask {number} of {len(filled.masks)}", style="dim"))
        names = names_apart(opened.tokenizer, [candidate.id for candidate in mask.candidates])
        for candidate, name in zip(mask.candidates, names, strict=True):
            line = Text(f"  {candidate.probability:6.1%} ")
            line.append(f"{_bar(candidate.probability):<{BAR_CELLS}} ", style="cyan")
            console.print(line.append(printable(name)))


def _bar(probability: float) -> str:
    """As long as the candidate is likely, to an eighth of a cell; something is seen of each.

    >>> _bar(0.5), _bar(1 / 64), _bar(0.0)
    ('████████████', '▍', '▏')
    """
    cells, eighths = divmod(max(1, round(8 * BAR_CELLS * probability)), 8)
    return ("█" * cells + EIGHTHS[eighths]).rstrip()
