"""NumPy arrays of ids (.npy): each row of a 2-D array is a document, a 1-D array is one.

Read a megabyte of rows at a time, and nothing is ever unpickled. A memory map would only work for local files that are
not compressed, and would turn a file that shrinks meanwhile into a crash.
"""

import io
import math
import tokenize
from collections.abc import Iterator
from typing import cast

import numpy as np

from mlm_pytorch.data.formats.record import Document, Reading, one_line
from mlm_pytorch.data.lines import CHUNK_BYTES, MAX_DOCUMENT_BYTES, too_long


def read_npy(reader: io.BufferedReader, reading: Reading) -> Iterator[Document]:
    """Yield a document per row."""
    label = reading.label
    shape, fortran_order, dtype = _header(reader, label)
    if dtype.kind not in "iu":
        raise ValueError(f"{label} holds {dtype}, not integers; ids are read from arrays of integers")
    if len(shape) not in (1, 2):
        raise ValueError(f"{label} has {len(shape)} dimensions; ids are read from (documents, length) or (length,)")
    if fortran_order and len(shape) == 2:
        raise ValueError(f"{label} lies column by column; save numpy.ascontiguousarray(array) instead")
    rows, length = (1, shape[0]) if len(shape) == 1 else shape
    if length == 0:
        raise ValueError(f"{label} holds no ids (its shape is {shape}); leave it out")
    if length * 8 > MAX_DOCUMENT_BYTES:
        raise too_long(f"{label}: a row of {length:,} ids")
    per_read = max(1, CHUNK_BYTES // max(1, length * 8))
    for first in range(0, rows, per_read):
        count = min(per_read, rows - first)
        data = reader.read(count * length * dtype.itemsize)
        if len(data) < count * length * dtype.itemsize:
            row = first + len(data) // (length * dtype.itemsize) + 1
            raise ValueError(f"{label} ends within row {row} of {rows}; it was cut off: copy it again")
        flat = np.frombuffer(data, dtype)
        ids = reading.checked_ids(flat, np.full(count, length), first + 1, "row").reshape(count, length)
        for row in ids:
            yield Document("", reading.source, row)
    if reader.read(1):
        raise ValueError(f"{label} goes on after the {math.prod(shape):,} ids that its header promises; save it again")


def _header(reader: io.BufferedReader, label: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns lie together, and type of the items."""
    try:
        version = np.lib.format.read_magic(reader)
        # A later version only allows other field names, and ids have no fields.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(reader)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"{label} is damaged NPY ({one_line(error)}); save it again with numpy.save") from None
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{label} is damaged NPY (its shape is {shape}); save it again with numpy.save")
    return cast("tuple[int, ...]", shape), bool(fortran_order), dtype
