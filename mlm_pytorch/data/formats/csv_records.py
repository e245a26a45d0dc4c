"""CSV and TSV: the first line names the columns.

CSV is read as RFC 4180 has it: a field in quotes may hold commas, line ends, and quotes written twice.

TSV has no such rule (IANA's text/tab-separated-values knows no quotes), and most of its writers leave quotes alone, but
some quote as in CSV what holds a tab, a line end or a quote. Both are read: a field stands for itself, unless it is in
quotes and holds what needs them; and where a line has not the header's number of fields, or the next one that is not
blank has not and this one's last field begins with a quote, it is read on as CSV.
"""

import csv
import itertools
from collections.abc import Iterator

from mlm_pytorch.data.formats.record import IDS_COLUMN, Document, Reading, find_column, listed
from mlm_pytorch.data.lines import MAX_DOCUMENT_BYTES, Lines


def read_csv(lines: Lines, delimiter: str, reading: Reading) -> Iterator[Document]:
    """Yield a document per record; blank lines are passed over."""
    # The module's limit of 131,072 characters is the whole process's; it is only ever raised here.
    if csv.field_size_limit() < MAX_DOCUMENT_BYTES:
        csv.field_size_limit(MAX_DOCUMENT_BYTES)
    rows = _csv_rows(iter(lines), lines, ",") if delimiter == "," else _tsv_rows(lines)
    header, line = next(rows, (None, 0))
    if header is None:
        raise ValueError(f"{lines.label} is empty; its first line must name the columns")
    where = f"{lines.label} line {line}, which names the columns,"
    column = reading.column or find_column(header, where)
    if header.count(column) != 1:
        trouble = f"has no {column!r}" if column not in header else f"has more than one {column!r}"
        raise ValueError(f"{where} {trouble}, but {listed(header)}; name one of them with --column")
    if column == IDS_COLUMN:
        raise ValueError(f"{where} has {column!r}, but ids are read from JSON lines, Parquet, Arrow or .npy only")
    index = header.index(column)
    source_index = header.index("source") if header.count("source") == 1 and column != "source" else None
    for number, (row, line) in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(
                f"{lines.label} record {number} (line {line}) has {len(row)} fields where the first line names "
                f"{len(header)}; repair it (a field that holds the separator or a line end must be in quotes)"
            )
        yield Document(row[index], (row[source_index] if source_index is not None else "") or reading.source)


def _csv_rows(texts: Iterator[str], lines: Lines, delimiter: str, line: int = 1) -> Iterator[tuple[list[str], int]]:
    """Fields of each record, and the line on which it begins."""
    reader = csv.reader((text + "\n" for text in texts), delimiter=delimiter, strict=True)
    while (row := _next_row(reader, lines, line)) is not None:
        if row:
            yield row, line
        line = lines.number + 1


def _tsv_rows(lines: Lines) -> Iterator[tuple[list[str], int]]:
    """The same for tab-separated files, whose quotes may be quotes or not."""
    rest = iter(lines)
    upcoming = next((text for text in rest if text), None)
    if upcoming is None:
        return
    num_fields = upcoming.count("\t") + 1
    if all(map(_is_quoted, upcoming.split("\t"))):  # by a writer that quotes everything
        yield from _csv_rows(itertools.chain([upcoming], rest), lines, "\t", lines.number)
        return
    while upcoming is not None:
        text, line = upcoming, lines.number
        num_blank, upcoming = 0, next(rest, None)
        while upcoming == "":
            num_blank, upcoming = num_blank + 1, next(rest, None)
        row = text.split("\t")
        opens = row[-1].startswith('"') and not _is_quoted(row[-1])
        goes_on = opens and upcoming is not None and upcoming.count("\t") + 1 != num_fields
        if '"' in text and (len(row) != num_fields or goes_on):
            blank = itertools.repeat("", num_blank)
            following = itertools.chain([text], blank, [] if upcoming is None else [upcoming], rest)
            taken = itertools.count(-1)  # how many lines behind the first one have been taken
            texts = (part for part, _ in zip(following, taken, strict=False))
            yield from itertools.islice(_csv_rows(texts, lines, "\t", line), 1)
            if next(taken) > 0:
                upcoming = next(rest, None)
        elif text:
            yield [_unquoted(field) if '"' in field else field for field in row], line


def _next_row(reader: Iterator[list[str]], lines: Lines, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        until = f" to {lines.number}" if lines.number > line else ""
        if "unexpected end of data" in str(error):
            raise ValueError(
                f"{lines.label} line {line}: a quote begins a field here that is not closed up to the end of the file; "
                "close it, or put the field in quotes and double the quote"
            ) from None
        raise ValueError(
            f"{lines.label} line {line}{until}: {error}; a field with quotes or line ends in it must stand in quotes, "
            "and quotes in it be doubled"
        ) from None


def _is_quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _unquoted(field: str) -> str:
    """What a field of a TSV line stands for: itself, unless it is quoted and had to be."""
    return field[1:-1].replace('""', '"') if _is_quoted(field) and '""' in field[1:-1] else field
