"""Files -> lines: what lies between a path and its decoded lines, for all that `corpus` reads.

    open_input -> Counted (bytes that went through) -> Decompressed (gzip, zstd, bzip2, xz) -> Lines (UTF-8, numbered)

Bounded memory: a chunk of the file and the line at hand. Whatever is cut off, damaged or not UTF-8 raises a
`ValueError` of one line with the file and the place.
"""

import bz2
import codecs
import io
import itertools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

EncodingErrors = Literal["strict", "replace"]

COMPRESSION_SUFFIXES = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# No text that people write begins like this, so the bytes decide, not the name.
COMPRESSION_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or one to be skipped
    "bzip2": re.compile(rb"BZh[1-9](1AY&|\x17rE8)"),  # a block, or the end
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
CHUNK_BYTES = 1 << 20
COMPRESSED_CHUNK_BYTES = 1 << 13  # bounds what one step can expand to: a thousandfold with gzip
# Of FASTQ or FASTA, as far as it tells them from text. "." is a gap there, but ends a word behind quoted lines (">").
SEQUENCE_LINE = re.compile(rb"[A-Za-z*.-]+")
UNLIKE_A_WORD = re.compile(rb"[A-Z*.-]{4,}|[A-Za-z*.-]{20,}")
EMPTY_RECORDS = 64  # of FASTA, at most, before the first with a sequence
# Of UTF-16 and UTF-32 without a byte order mark: which of four bytes are hardly ever 16 or more. Those of most
# alphabets, and of English above all, are valid UTF-8 too, so nothing else would tell.
_WIDE = {
    (0, 1, 0, 1): "UTF-16LE",
    (1, 0, 1, 0): "UTF-16BE",
    (0, 1, 1, 1): "UTF-32LE",
    (1, 1, 1, 0): "UTF-32BE",
}
_LOOKED_AT = 1 << 12  # bytes, for the encoding
# What one document may take: a file without line ends, or a quote that is never closed, must not take all memory.
MAX_DOCUMENT_BYTES = 1 << 28


def open_input(path: Path | None, label: str) -> BinaryIO:
    """Open a file, or standard input for None, unbuffered. `label` is how messages name it."""
    if path is None:
        if sys.stdin is None:
            raise ValueError("standard input is closed; name a file instead of -")
        try:
            # A handle of our own: a read that is interrupted must not hold the lock of sys.stdin's buffer at exit.
            file = cast("BinaryIO", open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))  # noqa: SIM115
            os.set_blocking(file.fileno(), True)  # a parent may have left it otherwise: then a pause looks like the end
            return file
        except io.UnsupportedOperation:  # a stand-in without a descriptor, as notebooks and tests set
            return sys.stdin.buffer
    try:
        return cast("BinaryIO", path.open("rb", buffering=0))
    except OSError as error:
        raise ValueError(f"{label} cannot be read ({error.strerror}); check the path and its permissions") from None


class Counted(io.RawIOBase):
    """Bytes of a file or pipe: counts those that went through, and shows the first (`head`) before they are read."""

    def __init__(self, raw: BinaryIO, count: Callable[[int], None]):
        self.raw, self.count, self.head = raw, count, b""
        while len(self.head) < 8 and (more := raw.read(8 - len(self.head))):  # a pipe may give single bytes
            self.head += more
        self.unread = self.head

    def readable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase."""
        size = min(len(buffer), len(self.unread))
        buffer[:size], self.unread = self.unread[:size], self.unread[size:]
        if size < len(buffer):  # the head alone would be too little for whoever peeks
            size += cast("io.RawIOBase", self.raw).readinto(memoryview(buffer)[size:]) or 0
        self.count(size)
        return size


class Decompressed(io.RawIOBase):
    """The bytes inside a gzip, zstd, bzip2 or xz stream of one or more members.

    Every format's own reader differs in what it does at a truncated or damaged stream (python-zstandard's ends
    quietly), so all go through the one interface that their incremental decompressors share.
    """

    def __init__(self, raw: io.RawIOBase, compression: str, label: str):
        self.raw, self.compression, self.label = raw, compression, label
        self.new_member, self.damage = _decompressor(compression)
        self.member: Any = self.new_member()
        self.pending = memoryview(b"")
        self.num_bytes = 0
        self.behind = b""  # how what follows the first member begins

    def readable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase."""
        while not self.pending:
            chunk = self.raw.read(COMPRESSED_CHUNK_BYTES)
            if not chunk:
                if self.member is not None and not self.member.eof:
                    if self.behind.isspace():
                        raise ValueError(
                            f"{self.label} goes on behind its {self.compression} data with {self.behind!r}, which is "
                            "none; remove that, or compress it anew"
                        )
                    raise ValueError(
                        f"{self.label} ends in the middle of its {self.compression} data, after {self.num_bytes:,} "
                        "bytes of content; it was cut off: copy or download it again"
                    )
                return 0
            self.pending = memoryview(self._decompress(chunk))
            self.num_bytes += len(self.pending)
        size = min(len(buffer), len(self.pending))
        buffer[:size], self.pending = self.pending[:size], self.pending[size:]
        return size

    def _decompress(self, chunk: bytes) -> bytes:
        parts: list[bytes] = []
        try:
            while chunk:
                if self.member is None or self.member.eof:
                    chunk = chunk.lstrip(b"\0")  # zeros may pad the end, as tapes and some tools leave them
                    if not chunk:
                        break
                    self.behind = b"" if self.member is None else chunk[:8]
                    self.member = self.new_member()
                parts.append(self.member.decompress(chunk))
                chunk = self.member.unused_data if self.member.eof else b""
        except self.damage as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.label} holds damaged {self.compression} data ({reason}) after {self.num_bytes:,} bytes of "
                "content; copy or download it again"
            ) from None
        return b"".join(parts)


def _decompressor(compression: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """A maker of incremental decompressors, and what they raise at damaged data."""
    if compression == "gzip":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if compression == "bzip2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if compression == "xz":
        return lzma.LZMADecompressor, (lzma.LZMAError,)
    import zstandard

    # Archives made with --long=31 need a window of 2 GB; the library's own limit is lower.
    return lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), (zstandard.ZstdError,)


def compression_of(head: bytes) -> str | None:
    """The name of the compression that a file's first bytes announce."""
    return next((name for name, magic in COMPRESSION_MAGIC.items() if magic.match(head)), None)


# -- lines -------------------------------------------------------------------------------------------------------------


class Lines:
    """Decoded lines without their ends (LF or CRLF), skipping a byte order mark; `number` is that of the latest
    line.
    """

    def __init__(self, reader: io.BufferedReader, label: str, encoding_errors: EncodingErrors):
        self.reader, self.label, self.encoding_errors = reader, label, encoding_errors
        self.number = 0
        self.offset = 0  # of the current line, in bytes from the beginning of the (decompressed) file
        self.ahead: list[bytes] = []  # lines that `look` has read
        self.wide = wide_encoding(reader.peek(_LOOKED_AT)[:_LOOKED_AT])

    def look(self) -> str | None:
        """The format that the first lines that are not blank are of: JSON lines, FASTA, FASTQ, or none of these."""
        first = self._look_further()
        if first.startswith(b"{"):
            return "JSON lines"
        if first.startswith(b">"):
            line = second = self._look_further()
            for _ in range(EMPTY_RECORDS):
                if not line.startswith(b">"):
                    break
                line = self._look_further()
            # Behind a single header what might be a word is taken for a sequence; quoted mail has several such lines.
            alike = SEQUENCE_LINE.fullmatch(line) and b"." not in line and line is second
            return "FASTA" if alike or UNLIKE_A_WORD.fullmatch(line) else None
        if first.startswith(b"@"):
            line = self._look_further()
            if SEQUENCE_LINE.fullmatch(line) and self._look_further().startswith(b"+"):
                return "FASTQ"
            # Of an empty read the blank lines are passed over.
            if line.startswith(b"+") and self._look_further().startswith(b"@"):
                return "FASTQ" if SEQUENCE_LINE.fullmatch(self._look_further()) else None
        return None

    def _look_further(self) -> bytes:
        """The next line that is not blank, stripped, without using it; b"" at the end."""
        while line := self.reader.readline(MAX_DOCUMENT_BYTES):
            self.ahead.append(line)
            if content := line.removeprefix(codecs.BOM_UTF8).strip():
                return content
        return b""

    def _looked_at(self) -> Iterator[bytes]:
        while self.ahead:
            yield self.ahead.pop(0)

    def __iter__(self) -> Iterator[str]:
        if self.wide is not None:
            raise ValueError(
                f"{self.label} looks like {self.wide}, not UTF-8; convert it: iconv -f {self.wide} -t UTF-8"
            )
        read_line = partial(self.reader.readline, MAX_DOCUMENT_BYTES)
        for line in itertools.chain(self._looked_at(), iter(read_line, b"")):
            self.number += 1
            if self.number == 1 and not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
                raise only_returns(f"{self.label} line 1")
            if len(line) == MAX_DOCUMENT_BYTES:
                raise too_long(f"{self.label} line {self.number}")
            if self.number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{self.label} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8")
                if line.startswith(codecs.BOM_UTF8):
                    self.offset, line = 3, line[3:]
            if self.encoding_errors == "strict":
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    self._not_utf8(line, error)
            else:
                text = line.decode("utf-8", "replace")
            self.offset += len(line)
            yield text.removesuffix("\n").removesuffix("\r")

    def _not_utf8(self, line: bytes, error: UnicodeDecodeError) -> NoReturn:
        raise ValueError(
            f"{self.label} line {self.number}: byte 0x{line[error.start]:02x} at offset {self.offset + error.start} of "
            "the file is not UTF-8; repair or convert it, or pass --encoding-errors replace"
        ) from None


def wide_encoding(head: bytes) -> str | None:
    r"""Which of UTF-16 and UTF-32 the first bytes of a file are, where no mark says so; None for any other text.

    >>> wide_encoding("hello there".encode("utf-16-le")), wide_encoding(b"hello\0there"), wide_encoding(b"hello there")
    ('UTF-16LE', None, None)
    """
    if len(head) < 6 or 0 not in head:
        return None
    columns = [head[place::4] for place in range(4)]
    # Tabs and line ends stand in the one half of a character as well as in the other.
    below = [[sum(byte < limit for byte in column) / len(column) for column in columns] for limit in (9, 16)]
    for pattern, name in _WIDE.items():
        fits = zip(pattern, *below, strict=True)
        if all(share_16 > 0.7 if is_high else share_9 < 0.3 for is_high, share_9, share_16 in fits):
            return name
    return None


def only_returns(where: str) -> ValueError:
    """The error about what would be one line, because its lines end in carriage returns alone."""
    return ValueError(
        f"{where} holds a carriage return, in which alone lines of old Macs' files end; convert it: tr '\\r' '\\n'"
    )


def too_long(what: str) -> ValueError:
    """The error about a document that exceeds MAX_DOCUMENT_BYTES."""
    return ValueError(
        f"{what} is larger than {MAX_DOCUMENT_BYTES:,} bytes, the most that a document may have; cut it into several"
    )


def describe_head(head: bytes) -> str:
    """What a file begins with, for a message."""
    return f"begins with {head[:4]!r}" if head else "is empty"
