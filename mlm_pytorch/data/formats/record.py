"""What all formats share: the `Document` that they yield, the column that holds it, and what a value may be."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlm_pytorch.data.lines import EncodingErrors

IDS_COLUMN = "input_ids"
TEXT_COLUMNS = ("text", "sequence", "content", IDS_COLUMN)
MAX_TOKENS = 1 << 32  # ids of a store are 32-bit


@dataclass(frozen=True, slots=True)
class Document:
    """One text, as the file has it (line ends are line feeds; nothing is stripped), or one sequence of ids."""

    text: str  # "" where there are ids
    source: str | None  # the record's "source" field if there is one, else the file's name
    ids: np.ndarray | None = None  # (length,) int64, never negative: a sequence that is token ids already


@dataclass(frozen=True, slots=True)
class Reading:
    """What a format's reader is told: how messages name the file, and what the user wants of it."""

    label: str
    source: str  # of documents that name none themselves
    column: str | None  # None: the one there is of TEXT_COLUMNS
    encoding_errors: EncodingErrors
    num_tokens: int | None  # None: not known, so ids are only checked to be ids

    def value(self, value: Any, source: Any, column: str, where: str) -> Document:
        """The document that a record's text, list of integers or null is; ValueError for any other value."""
        if not isinstance(source, str):
            source = self.source
        if isinstance(value, str):
            if column == IDS_COLUMN and value:
                raise ValueError(f"{where}: {column!r} is text, not a list of ids; name another column with --column")
            return Document(value, source)
        if value is None:  # null is how many tools write an absent text
            return Document("", source)
        if not isinstance(value, list):
            raise ValueError(
                f"{where}: {column!r} is a JSON {json_type(value)}, not a string or a list of ids; name another with "
                "--column"
            )
        # True is an int to isinstance, hence the types themselves; three passes in C are quicker than one in Python.
        if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) >= self.id_limit):
            raise self._bad_item(value, column, where)
        return Document("", source, np.array(value, np.int64))

    @property
    def id_limit(self) -> int:
        """What every id must be below."""
        return MAX_TOKENS if self.num_tokens is None else self.num_tokens

    def checked_ids(self, ids: np.ndarray, lengths: np.ndarray, first: int, unit: str) -> np.ndarray:
        """Ids of several records end to end -> (tokens,) int64, all in range.

        `lengths`: ids per record. `first`: the 1-based number of the first of them, for the error, which calls them
        `unit`.
        """
        if len(ids) and (ids.min() < 0 or ids.max() >= self.id_limit):
            bad = int(np.flatnonzero((ids < 0) | (ids >= self.id_limit))[0])
            record = int(np.searchsorted(np.cumsum(lengths), bad, side="right"))
            raise self.bad_id(int(ids[bad]), f"{self.label} {unit} {first + record}")
        return ids.astype(np.int64, copy=False)

    def _bad_item(self, value: list[Any], column: str, where: str) -> ValueError:
        for number, item in enumerate(value, 1):
            if type(item) is not int:
                return ValueError(
                    f"{where}: {column!r} is a JSON array whose item {number} is of type {json_type(item)}, but "
                    "ids are integers; name another column with --column"
                )
        return self.bad_id(next(item for item in value if not 0 <= item < self.id_limit), where)

    def bad_id(self, value: int, where: str) -> ValueError:
        """The error about an id that is out of range."""
        shown = str(value) if abs(value) < 1 << 70 else "of more than 20 digits"
        if value < 0:
            return ValueError(f"{where}: id {shown} is negative; ids count from 0, so repair the data")
        if self.num_tokens is None:
            return ValueError(f"{where}: id {shown} is too large; ids must be less than {MAX_TOKENS:,}")
        return ValueError(
            f"{where}: id {shown} is not less than num_tokens {self.num_tokens}; repair the data, or name "
            "the vocabulary that its ids are of (--num-tokens, --tokenizer or --model)"
        )


def find_column(names: Sequence[str], where: str) -> str:
    """The one of TEXT_COLUMNS that there is among `names`."""
    found = [name for name in TEXT_COLUMNS if name in names]
    if len(found) == 1:
        return found[0]
    trouble = f"could mean any of {listed(found)}" if found else f"has none of {listed(TEXT_COLUMNS)}"
    raise ValueError(
        f"{where} {trouble}; its columns are {listed(names)}: name the one that holds the text or ids with --column"
    )


def json_type(value: Any) -> str:
    """What JSON calls the type of a value that `json` has read."""
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", str: "string"}
    return names.get(type(value), "null")


def listed(names: Iterable[str], limit: int = 12) -> str:
    """At most `limit` names, quoted by repr so that whatever a file calls its columns stays on one line."""
    shown = [repr(name) for name in itertools.islice(names, limit + 1)]
    return ", ".join(shown[:limit]) + (", …" if len(shown) > limit else "") if shown else "nothing"


def one_line(error: object) -> str:
    """What another library says of an error, on one line of at most 300 characters."""
    reason = " ".join(str(error).split())
    return reason if len(reason) <= 300 else reason[:299] + "…"
