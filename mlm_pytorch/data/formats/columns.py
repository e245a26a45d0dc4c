"""Tables in columns: Parquet, Arrow IPC (a file or a stream, as `datasets` saves it), and the Hub's data sets.

pyarrow reads the first two by itself, a record batch at a time: `datasets` would first copy a local file into its
cache, and its errors name no row. It is imported for the Hub alone, which only it knows.

A damaged file must not crash the process, so what Arrow does not check (offsets, whether strings are UTF-8, whether a
stream has its end) is checked here before a value is touched.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlm_pytorch.data.formats.record import Document, Reading, find_column, listed, one_line
from mlm_pytorch.data.lines import CHUNK_BYTES

RECORD_BATCH_ROWS = 256
RECORD_BATCH_BYTES = 1 << 24
HELD_CHUNK_BYTES = 1 << 26
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

Progress = Callable[[float], None]  # told which share of the file has been read


def read_parquet(file: Path | IO[bytes], reading: Reading, progress: Progress) -> Iterator[Document]:
    """Yield a document per row."""
    import pyarrow.parquet as pq  # a quarter of a second that other formats need not pay

    row = 0
    try:
        metadata = pq.read_metadata(file)
        columns = _columns(metadata.schema.to_arrow_schema(), reading)
        in_file, in_chunk = _column_bytes(metadata, columns.text_or_ids)
        # So many rows that a batch has about RECORD_BATCH_BYTES.
        per_row = max(in_file // max(metadata.num_rows, 1), 1)
        rows = min(max(RECORD_BATCH_BYTES // per_row, 1), RECORD_BATCH_ROWS)
        with pq.ParquetFile(
            file,
            metadata=metadata,
            # A column chunk is held as a whole, which is the whole file when it has one row group, unless it is read
            # through a buffer. Small ones are not: there a damaged length would ask for up to 2 GB before it fails.
            buffer_size=CHUNK_BYTES if in_chunk > HELD_CHUNK_BYTES else 0,
            pre_buffer=False,
            page_checksum_verification=True,
        ) as parquet:
            for batch in parquet.iter_batches(batch_size=rows, columns=columns.names):
                yield from _documents(batch, columns, reading, row)
                row += batch.num_rows
                progress(row / max(metadata.num_rows, 1))
            if row != metadata.num_rows:
                raise ValueError(
                    f"{reading.label} has {row} rows, not the {metadata.num_rows} that it promises; "
                    "it was cut off or damaged, so fetch or write it anew"
                )
    except _arrow_errors() as error:
        raise _damaged(error, "Parquet", reading, row) from None
    progress(1)


def read_arrow(file: Path | IO[bytes], reading: Reading, progress: Progress) -> Iterator[Document]:
    """Yield a document per row of an Arrow IPC file or stream."""
    import pyarrow as pa

    row = 0
    try:
        with pa.memory_map(str(file)) if isinstance(file, Path) else pa.PythonFile(file, "r") as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader: Any = pa.ipc.open_file(source)
                columns = _columns(reader.schema, reading)
                options = pa.ipc.IpcReadOptions(included_fields=columns.indices)
                reader = pa.ipc.open_file(source, options=options)
                batches = (
                    (reader.get_batch(index), (index + 1) / reader.num_record_batches)
                    for index in range(reader.num_record_batches)
                )
            else:
                size = source.size()
                source.seek(max(size - len(END_OF_STREAM), 0))
                if source.read() != END_OF_STREAM:
                    raise ValueError(
                        f"{reading.label} has no end-of-stream mark; it was cut off: copy or write it again"
                    )
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                columns = _columns(stream.schema, reading)
                batches = ((batch, source.tell() / size) for batch in stream)
            for batch, share in batches:
                for first in range(0, batch.num_rows, RECORD_BATCH_ROWS):
                    yield from _documents(
                        _checked(batch.slice(first, RECORD_BATCH_ROWS), columns), columns, reading, row
                    )
                    row += min(RECORD_BATCH_ROWS, batch.num_rows - first)
                progress(share)
            if not is_file and source.tell() != source.size():
                raise ValueError(
                    f"{reading.label} is damaged Arrow: it goes on after its end (row {row}); write it again"
                )
    except _arrow_errors() as error:
        raise _damaged(error, "Arrow", reading, row) from None
    progress(1)


def read_hub(name: str, reading: Reading) -> Iterator[Document]:
    """Yield a document per row of a data set of the Hub, or of a folder that `datasets` can load, streaming.

    `name`: NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; the split is "train" unless given, the configuration the default.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError(
            f"{reading.label} needs the package datasets, which is not installed; "
            "run pip install '.[hub]' in the checkout"
        ) from None
    path, config, split, rest = [*name.split(":", 3), "", "", ""][:4]
    if not path or rest:
        raise ValueError(f"{reading.label} is no data set; write hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT")
    row, columns = 0, None
    known = (*_arrow_errors(), ValueError, KeyError, TypeError, DatasetsError)
    try:
        stream: Any = datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
        batches = stream.with_format("arrow").iter(batch_size=RECORD_BATCH_ROWS)
    except known as error:
        raise ValueError(f"{reading.label} cannot be opened ({one_line(error)}); check its name") from None
    while True:
        try:
            table = next(batches, None)
        except known as error:
            raise ValueError(
                f"{reading.label} cannot be read after row {row} ({one_line(error)}); "
                "it is damaged, so fetch or write it anew"
            ) from None
        if table is None:
            return
        columns = columns or _columns(table.schema, reading)
        for batch in table.combine_chunks().to_batches():
            yield from _documents(_checked(batch, columns), columns, reading, row)
            row += batch.num_rows


# -- what one table has ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    text_or_ids: str
    names: list[str]  # that, and "source" where there is one
    indices: list[int]  # of these in the table

    @property
    def with_source(self) -> bool:
        return len(self.names) > 1


def _columns(schema: Any, reading: Reading) -> _Columns:
    """Which columns to read; ValueError where there is none or its type is neither text nor lists of integers."""
    names = [field.name for field in schema]
    column = reading.column or find_column(names, reading.label)
    if names.count(column) != 1:
        trouble = f"has no column {column!r}, only" if column not in names else f"has more than one {column!r} of"
        raise ValueError(f"{reading.label} {trouble} {listed(names)}; name one of them with --column")
    kind = schema.field(names.index(column)).type
    if not _is_text(kind) and not _is_ids(kind):
        raise ValueError(
            f"{reading.label}: column {column!r} holds {one_line(kind)}, neither text nor lists of ids; of "
            f"{listed(names)} name another with --column"
        )
    wanted = [column]
    if column != "source" and names.count("source") == 1 and _is_text(schema.field(names.index("source")).type):
        wanted.append("source")
    return _Columns(column, wanted, [names.index(name) for name in wanted])


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or kind == pa.string_view()


def _is_ids(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and pa.types.is_integer(kind.value_type)


def _column_bytes(metadata: Any, column: str) -> tuple[int, int]:
    """How large a Parquet column is, decompressed, and its largest chunk as it lies in the file."""
    total = largest = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema.partition(".")[0] == column:
                total += chunk.total_uncompressed_size
                largest = max(largest, chunk.total_compressed_size)
    return total, largest


# -- one record batch --------------------------------------------------------------------------------------------------


def _documents(batch: Any, columns: _Columns, reading: Reading, first_row: int) -> list[Document]:
    """One record batch's documents. `first_row` counts the rows before it."""
    column = batch.column(columns.text_or_ids)
    own = reading.source
    sources = _strings(batch.column("source"), reading, first_row) if columns.with_source else [own] * len(column)
    if _is_text(column.type):
        texts = _strings(column, reading, first_row)
        return [Document(text or "", source or own) for text, source in zip(texts, sources, strict=True)]
    ids = _id_lists(column, reading, first_row)
    return [Document("", source or own, row) for row, source in zip(ids, sources, strict=True)]


def _strings(column: Any, reading: Reading, first_row: int) -> list[str | None]:
    """One record batch's texts; Arrow does not promise that a string column holds UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = _as_bytes(column).to_pylist()
    for index, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                values[index] = value.decode("utf-8", reading.encoding_errors)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{reading.label} row {first_row + index + 1}: byte 0x{value[error.start]:02x} at offset "
                    f"{error.start} of the text is not UTF-8; repair it or pass --encoding-errors replace"
                ) from None
    return values


def _checked(batch: Any, columns: _Columns) -> Any:
    """The batch, after a look at all offsets and indices in it: a wrong one would lead outside its memory."""
    for name in columns.names:
        _as_bytes(batch.column(name)).validate(full=True)
    return batch


def _as_bytes(column: Any) -> Any:
    """Strings as bytes, which need not be UTF-8; other types as they are."""
    import pyarrow as pa

    views = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return column.view(views[column.type]) if column.type in views else column


def _id_lists(column: Any, reading: Reading, first_row: int) -> list[np.ndarray]:
    """One record batch's lists of ids; a null is an empty one."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # whose functions are made as it is imported
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()  # without what lies under nulls
    if flat.null_count:
        bad = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        row = first_row + 1 + int(np.searchsorted(np.cumsum(lengths), bad, side="right"))
        raise ValueError(f"{reading.label} row {row}: its list has a null in place of an id; repair the data")
    ids = reading.checked_ids(flat.to_numpy(zero_copy_only=False), lengths, first_row + 1, "row")
    return np.split(ids, np.cumsum(lengths)[:-1])


# -- errors ------------------------------------------------------------------------------------------------------------


def _arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises at damage. A damaged length may ask for any amount of memory, a name be no Unicode."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def _damaged(error: Exception, kind: str, reading: Reading, row: int) -> Exception:
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return error
    return ValueError(f"{reading.label} is damaged {kind} after row {row} ({one_line(error)}); write it again")
