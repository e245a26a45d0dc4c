"""Read a corpus past what cannot be read of it: whole, or from any byte of a plain file on."""

import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace

from mlm_pytorch.data.corpus import Corpus, CorpusFile, Document
from mlm_pytorch.data.files import CODE_SUFFIXES, FORMAT_OF_SUFFIX, PROSE_SUFFIXES, suffixes
from mlm_pytorch.data.formats.record import Reading
from mlm_pytorch.data.formats.text import SplitText
from mlm_pytorch.data.lines import MAX_DOCUMENT_BYTES, EncodingErrors, Lines, too_long


class Tolerant(Corpus):
    """A corpus that goes on behind a line that cannot be read: `failed` counts them, `failure` quotes the first.

    After `deadline` (of `time.monotonic`) it does not, and has `given_up`: what cannot be read yields no document at
    which a reader could look at the clock.
    """

    failed = 0
    failure: str | None = None
    deadline = math.inf
    given_up = False
    with_long_lines: frozenset[str] = frozenset()  # labels of files

    def _fail(self, error: ValueError) -> None:
        self.failed += 1
        self.failure = self.failure or str(error)

    def read(self, file: CorpusFile) -> Iterator[Document]:
        """The documents of a file, empty ones too, up to where it cannot be read any further."""
        try:
            yield from self._read(file)
        except ValueError as error:
            self._fail(error)

    def read_range(self, file: CorpusFile, start: int, size: int) -> Iterator[Document]:
        """Those whose lines begin in a range of a plain file's bytes."""
        assert file.path is not None
        with file.path.open("rb") as raw:
            if start:
                raw.seek(start - 1)
                # The rest of a line that began before, or only its end.
                if len(raw.readline(MAX_DOCUMENT_BYTES)) == MAX_DOCUMENT_BYTES:
                    if file.label not in self.with_long_lines:  # many ranges may lie in one line
                        self._fail(too_long(f"{file.label}: the line at byte {start:,}"))
                    self.with_long_lines |= {file.label}
                    return
            content = raw.read(max(0, start + size - raw.tell()))
            content += raw.readline(MAX_DOCUMENT_BYTES) if content and not content.endswith(b"\n") else b""
        lines = Lines(io.BufferedReader(io.BytesIO(content)), f"{file.label} from byte {start:,}", self._errors)  # type: ignore[arg-type]
        reading = replace(self.reading, label=lines.label, source=file.source)
        yield from self._read_lines(lines, suffixes(file.label)[0], reading)

    @property
    def _errors(self) -> EncodingErrors:
        return self.reading.encoding_errors

    def _read_lines(self, lines: Lines, suffix: str, reading: Reading) -> Iterator[Document]:
        if not reads_single_lines(suffix, self.split_text):
            yield from super()._read_lines(lines, suffix, reading)
            return
        while True:
            before = lines.number
            try:
                yield from super()._read_lines(lines, suffix, reading)
                return
            except ValueError as error:
                self._fail(error)
                if lines.number == before:  # not the line is at fault but the file, cut off or damaged here
                    return
                if time.monotonic() > self.deadline:
                    self.given_up = True
                    return


def reads_single_lines(suffix: str, split_text: SplitText | None) -> bool:
    """Whether every line of a file with this suffix is read on its own: text by lines, and JSON lines."""
    if suffix in PROSE_SUFFIXES | CODE_SUFFIXES:
        return split_text == "line"
    return FORMAT_OF_SUFFIX.get(suffix) in (None, "text", "JSON lines") and split_text in (None, "line")
