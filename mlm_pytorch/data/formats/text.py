"""Text: a document is a line, a paragraph, or the whole file."""

from collections.abc import Callable, Iterator
from typing import Literal

from mlm_pytorch.data.formats.record import Document, Reading
from mlm_pytorch.data.lines import MAX_DOCUMENT_BYTES, Lines, too_long

SplitText = Literal["line", "paragraph", "file"]


def read_text(lines: Lines, split: SplitText, reading: Reading) -> Iterator[Document]:
    """Yield a document for each unit that `split` names."""
    for text in _SPLITTERS[split](lines):
        yield Document(text, reading.source)


def _paragraphs(lines: Lines) -> Iterator[str]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    begin = 0
    for line in lines:
        if line and not line.isspace():
            paragraph.append(line)
            if lines.offset - begin > MAX_DOCUMENT_BYTES:
                raise too_long(f"{lines.label}: the paragraph before line {lines.number}")
        else:
            if paragraph:
                yield "\n".join(paragraph)
                paragraph = []
            begin = lines.offset
    if paragraph:
        yield "\n".join(paragraph)


def _whole_file(lines: Lines) -> Iterator[str]:
    parts: list[str] = []
    for line in lines:
        parts.append(line)
        if lines.offset > MAX_DOCUMENT_BYTES:
            raise too_long(f"{lines.label}, which is read as one document,")
    yield "\n".join(parts)


_SPLITTERS: dict[SplitText, Callable[[Lines], Iterator[str]]] = {
    "line": iter,
    "paragraph": _paragraphs,
    "file": _whole_file,
}
