"""JSON lines, and JSON: one array of objects, or objects one after another, each over as many lines as it likes.

Both hold one record at a time. `json` has no reader that does so for an array, so a scanner finds where each object
ends, by its brackets and strings, and `json` parses that.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from json.scanner import make_scanner
from typing import Any

from mlm_pytorch.data.formats.record import IDS_COLUMN, Document, Reading, find_column, json_type, listed
from mlm_pytorch.data.lines import CHUNK_BYTES, MAX_DOCUMENT_BYTES, Lines, too_long

SCAN: Any = make_scanner(json.JSONDecoder())  # pyright: ignore[reportArgumentType] - its stub is of another shape
BLANKS = re.compile(rb"[ \t\r\n]*")
STRUCTURE = re.compile(rb'["{}\[\]]')
IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def read_json_lines(lines: Lines, reading: Reading) -> Iterator[Document]:
    """Yield a document per line; blank lines are passed over."""
    records = _Records(reading)
    for line in lines:
        if line and not line.isspace():
            yield records.document(line, f"{lines.label} line {lines.number}")


def read_json(reader: io.BufferedReader, reading: Reading) -> Iterator[Document]:
    """Yield a document per object. JSON lines under the name .json are told by a first line that is an object."""
    head = reader.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"{") and not _opens_over_lines(head):
        yield from read_json_lines(Lines(reader, reading.label, reading.encoding_errors), reading)
        return
    if not head.startswith((b"{", b"[")):  # nothing at all, or no JSON: for the errors that lines give
        yield from read_json_lines(Lines(reader, reading.label, reading.encoding_errors), reading)
        return
    records = _Records(reading)
    values = _Values(reader, reading.label)
    for value in values:
        where = f"{reading.label} record {values.number} (line {values.begin})"
        try:
            text = value.decode("utf-8", reading.encoding_errors)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: byte 0x{value[error.start]:02x} is not UTF-8; repair or convert the file, or pass "
                "--encoding-errors replace"
            ) from None
        yield records.document(text, where)


def _opens_over_lines(head: bytes) -> bool:
    """Whether the object that a file begins with does not end on its first line (as far as `head` shows it)."""
    line, end, _ = head.partition(b"\n")
    if not end:
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        # "{", or a first member and a comma; a damaged line of JSON lines goes on with an object on the next
        return not head[len(line) :].lstrip().startswith(b"{")
    return False


def _loads(line: str) -> Any:
    """`json.loads`, without a search for blanks around the value where there are none: a third of its time."""
    try:
        value, end = SCAN(line, 0)
    except (StopIteration, ValueError):
        value, end = None, -1
    return value if end == len(line) else json.loads(line)


class _Records:
    """The text of JSON objects -> documents, all of the column that the first one settles."""

    def __init__(self, reading: Reading):
        self.reading, self.column = reading, reading.column

    def document(self, line: str, where: str) -> Document:
        try:
            record = _loads(line)
        except RecursionError:
            raise ValueError(f"{where} is nested too deeply to be read; remove or simplify it") from None
        except ValueError as error:  # JSONDecodeError, and the limit on the digits of an integer
            raise ValueError(
                f"{where} is not JSON ({error}); repair it (a .jsonl has one object per line, a .json an array of them)"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f'{where} is a JSON {json_type(record)}; write one object per line, as {{"text": "…"}}')
        if self.column is None:
            self.column = find_column(list(record), where)
        column = self.column
        if column not in record:
            raise ValueError(
                f"{where} has no {column!r}, only {listed(record)}; name the text with --column or repair it"
            )
        value, source = record[column], record.get("source")
        # An escape such as \ud800 is legal JSON but no Unicode text.
        if "\\ud" in line or "\\uD" in line:
            value = self._without_surrogates(value, where) if isinstance(value, str) else value
            source = self._without_surrogates(source, where) if isinstance(source, str) else None
        if type(value) is str and column != IDS_COLUMN:  # as `value` would do, but most records come here
            return Document(value, source if isinstance(source, str) else self.reading.source)
        return self.reading.value(value, source, column, where)

    def _without_surrogates(self, text: str, where: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.reading.encoding_errors == "strict":
                surrogate = f"\\u{ord(text[error.start]):04x}"
                raise ValueError(
                    f"{where} holds half a character ({surrogate}); repair it or pass --encoding-errors replace"
                ) from None
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text


class _Values:
    """Iterates over the bytes of each object of an array, or of objects that follow each other.

    `number` (from 1) and `begin` (a line) are those of the object at hand.
    """

    def __init__(self, reader: io.BufferedReader, label: str):
        self.reader, self.label = reader, label
        self.buffer, self.position = bytearray(), 0  # what has been read, and up to where it is used
        self.number, self.line, self.begin = 0, 1, 1

    def __iter__(self) -> Iterator[bytes]:
        self._more()
        if self.buffer.startswith(codecs.BOM_UTF8):
            self.position = 3
        in_array = self._next() == b"["
        self.position += in_array
        first, comma = True, False
        while byte := self._next():
            if in_array and byte == b"]" and not comma:
                self.position += 1
                if self._next():
                    raise ValueError(f"{self.label} line {self.line}: more follows the end of the array; remove it")
                return
            if in_array and not first and not comma:
                if byte != b",":
                    raise ValueError(
                        f"{self.label} line {self.line}: after record {self.number} comes {byte!r}, not a comma or the "
                        "end of the array; repair it"
                    )
                self.position += 1
                comma = True
                continue
            self.number += 1
            self.begin = self.line
            if byte != b"{":
                raise ValueError(
                    f"{self.label} record {self.number} (line {self.line}) begins with {byte!r}; only objects such as "
                    '{"text": "…"} can be read'
                )
            yield self._object()
            first = comma = False
        if in_array:
            raise ValueError(f"{self.label} ends within its array, after {self.number} records; it was cut off")

    def _more(self) -> bool:
        """Read on; False at the end. What is used is let go first."""
        del self.buffer[: self.position]
        self.position = 0
        chunk = self.reader.read1(CHUNK_BYTES)
        self.buffer += chunk
        return bool(chunk)

    def _next(self) -> bytes:
        """The next byte that is not blank, without using it; b"" at the end."""
        while True:
            end = BLANKS.match(self.buffer, self.position).end()  # type: ignore[union-attr]  # it matches anything
            self.line += self.buffer.count(b"\n", self.position, end)
            self.position = end
            if end < len(self.buffer):
                return bytes(self.buffer[end : end + 1])
            if not self._more():
                return b""

    def _object(self) -> bytes:
        """Use and return the bytes of the object that begins here."""
        size, depth, in_string = 0, 0, False  # size: how much of it has been seen
        while True:
            if in_string:
                size = IN_STRING.match(self.buffer, self.position + size).end() - self.position  # type: ignore[union-attr]
                if self.buffer[self.position + size : self.position + size + 1] == b'"':
                    size += 1
                    in_string = False
                    continue
            elif found := STRUCTURE.search(self.buffer, self.position + size):
                size = found.end() - self.position
                if found[0] == b'"':
                    in_string = True
                else:
                    depth += 1 if found[0] in b"{[" else -1
                if depth:
                    continue
                value = bytes(self.buffer[self.position : self.position + size])
                self.position += size
                self.line += value.count(b"\n")
                return value
            else:
                size = len(self.buffer) - self.position
            where = f"{self.label} record {self.number} (line {self.begin})"
            if size > MAX_DOCUMENT_BYTES:
                raise too_long(where)
            if not self._more():
                raise ValueError(f"{where} has no end; the file was cut off or a quote or bracket is missing")
