"""FASTA and FASTQ: sequences of letters, one document per record; letters stay as they are, soft-masked ones too.

FASTA: Pearson and Lipman 1988. FASTQ: Cock et al. 2010 (doi:10.1093/nar/gkp1137), with the four lines per record that
all of today's instruments write.
"""

import re
from collections.abc import Iterator

from mlm_pytorch.data.formats.record import Document, Reading
from mlm_pytorch.data.lines import MAX_DOCUMENT_BYTES, Lines, only_returns, too_long

NO_LETTER = re.compile(r"[^A-Za-z*.\-]")  # "*" ends a protein or is a stop, "-" and "." are gaps
NO_QUALITY = re.compile(r"[^!-~]")
JOIN_LINES = 1 << 12


def read_fasta(lines: Lines, reading: Reading) -> Iterator[Document]:
    """Yield each record's lines, joined. Comment lines (";") are passed over."""
    sequence: _Joined | None = None
    for line in lines:
        if line.startswith(">"):
            _check_header(line, lines)
            if sequence is not None:
                yield Document(sequence.text(), reading.source)
            sequence = _Joined()
        elif line and line[0] != ";" and (line := line.strip()):
            if sequence is None:
                raise ValueError(
                    f"{lines.label} line {lines.number} comes before any header; a FASTA record begins with a line "
                    "such as >name"
                )
            _check_letters(line, lines)
            sequence.add(line)
            if sequence.length > MAX_DOCUMENT_BYTES:
                raise too_long(f"{lines.label}: the record before line {lines.number}")
    if sequence is not None:
        yield Document(sequence.text(), reading.source)


def read_fastq(lines: Lines, reading: Reading) -> Iterator[Document]:
    """Yield each record's sequence, after checking that its four lines fit each other."""
    number = 0
    rest = iter(lines)
    for header in rest:
        if not header:
            continue  # at the end, as a rule; within a record it is an error
        number, first = number + 1, lines.number
        where = f"{lines.label} record {number} (line {first})"
        if not header.startswith("@"):
            raise ValueError(
                f"{where} begins with {header[:1]!r}, not with @; a FASTQ record has four lines: @name, "
                "sequence, +, qualities"
            )
        _check_header(header, lines)
        sequence, plus, quality = (next(rest, None) for _ in range(3))
        if sequence is None or plus is None or quality is None:
            raise ValueError(f"{where} is cut off within its four lines; copy or download the file again")
        if not plus.startswith("+") or plus.rstrip() not in ("+", "+" + header[1:].rstrip()):
            raise ValueError(
                f"{where}: its third line is not + (or + and its name again); records over more than four "
                "lines are not read"
            )
        sequence, quality = sequence.rstrip(), quality.rstrip()
        if len(sequence) != len(quality):
            raise ValueError(f"{where} has {len(sequence)} letters but {len(quality)} qualities; copy the file again")
        if sequence:
            _check_letters(sequence, lines, first + 1)
        if odd := NO_QUALITY.search(quality):
            raise ValueError(f"{where}: {odd[0]!r} is no quality; repair it or copy the file again")
        yield Document(sequence, reading.source)


def _check_header(line: str, lines: Lines) -> None:
    """A file whose lines end in CR alone is one header, and its sequences would be lost in it."""
    if "\r" in line.rstrip("\r"):
        raise only_returns(f"{lines.label} line {lines.number}")


def _check_letters(line: str, lines: Lines, number: int | None = None) -> None:
    if line.isascii() and line.isalpha():  # several times as fast as the pattern
        return
    if odd := NO_LETTER.search(line):
        raise ValueError(
            f"{lines.label} line {number or lines.number}: {odd[0]!r} (column {odd.start() + 1}) is not of a sequence, "
            "which is made of letters, * - and .; repair it (if the file is text, name it .txt)"
        )


class _Joined:
    """Lines joined to a text. A list of a chromosome's short lines would take several times its size."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.lines: list[str] = []
        self.length = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.length += len(line)
        if len(self.lines) == JOIN_LINES:
            self.parts.append("".join(self.lines))
            self.lines.clear()

    def text(self) -> str:
        return "".join(self.parts + self.lines)
