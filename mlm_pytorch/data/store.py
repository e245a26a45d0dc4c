"""TokenStore: a prepared corpus as memory-mapped Arrow shards with a manifest.

    folder/manifest.json          counts, dtype, seq_len, special tokens, tokenizer fingerprint, checksum of each shard
    folder/train-00000.arrow …    Arrow IPC files of one record batch each:
                                  tokens: large_list<uint16 | uint32>, source: string
    folder/valid-00000.arrow …    the held-out split, if there is one
    folder/tokenizer/             as transformers loads it

A piece is a slice of the values buffer between two offsets: no copy and no parsing, so a store of any size opens at
once and is as fast as the page cache. polars, DuckDB and `datasets` (`load_dataset("arrow", data_files=…)`) read the
shards too. Tokens are stored without framing: a reader puts `special.prefix` and `special.suffix` around each piece.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlm_pytorch.data.journal import State
from mlm_pytorch.data.manifest import MANIFEST as MANIFEST  # also found here
from mlm_pytorch.data.manifest import Manifest, ShardInfo, SplitInfo, write_file
from mlm_pytorch.data.pieces import LONGEST_SEQ_LEN, LongDocuments, Pieces, cut

SHARD_TOKENS = LONGEST_SEQ_LEN
SHARD_PIECES = 1 << 21  # bounds the memory that offsets take when pieces are tiny
SHARD_SOURCE_BYTES = 1 << 26  # and that of sources when they are long
WRITER_COUNTS = (
    "documents",
    "pieces",
    "tokens",
    "characters",
    "bytes",
    "cut_documents",
    "dropped_tokens",
    "repeated_tokens",
    "text_hash",
)


class TokenStore:
    """Random access to the pieces of one split of a store.

    >>> store = TokenStore.open("my-store")
    >>> len(store), store.piece(0)
    (89113, array([ 1234,    17,   900], dtype=uint16))

    Opening reads the manifest and looks whether every shard is there in its full size; a shard is mapped when the
    first of its pieces is asked for. Pickling (to a loader process) sends the path only.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest):
        info = manifest.splits[split]
        self.folder, self.split, self.manifest = folder, split, manifest
        self.num_tokens = info.tokens
        self.seq_len = manifest.seq_len
        self.special = manifest.special
        self.tokenizer_fingerprint = manifest.tokenizer_fingerprint
        self._shards = info.shards
        self._first_piece = [0, *np.cumsum([shard.pieces for shard in info.shards], dtype=np.int64).tolist()]
        self._mapped: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(info.shards)

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "TokenStore":
        """Raises ValueError when there is no such store or split, or a shard is missing or has another size than
        recorded.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if split not in manifest.splits:
            raise ValueError(
                f"store {folder} has no split {split!r}, only {', '.join(map(repr, manifest.splits))}; prepare it "
                "again with held-out documents, or name another"
            )
        for shard in manifest.splits[split].shards:
            try:
                size = (folder / shard.file).stat().st_size
            except FileNotFoundError:
                raise ValueError(f"{folder / shard.file} is missing from the store; prepare the store again") from None
            if size != shard.bytes:
                raise ValueError(
                    f"{folder / shard.file} has {size:,} bytes where the manifest says {shard.bytes:,}; "
                    "prepare the store again"
                )
        return cls(folder, split, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.split, self.manifest)

    def __len__(self) -> int:
        """Number of pieces."""
        return self._first_piece[-1]

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies that made the ids."""
        return self.folder / "tokenizer"

    @cached_property
    def fingerprint(self) -> str:
        """The same for stores of the same pieces in the same order by the same tokenizer: 64 hexadecimal digits."""
        parts = [self.tokenizer_fingerprint, str(self.seq_len), *(shard.sha256 for shard in self._shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def piece(self, index: int) -> np.ndarray:
        """The token ids of a piece, without framing: a read-only (length,) view of the file, uint16 or uint32."""
        shard, local = self._locate(index)
        offsets, values = self._mapped[shard] or self._map(shard)
        return values[offsets[local] : offsets[local + 1]]

    def length(self, index: int) -> int:
        """Tokens in a piece, without framing."""
        shard, local = self._locate(index)
        offsets, _ = self._mapped[shard] or self._map(shard)
        return int(offsets[local + 1] - offsets[local])

    def lengths(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """`length` of many pieces at once: (n,) int64. Reads offsets only, never tokens."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"piece {indices.max() if indices.max() >= len(self) else indices.min()} of {len(self)}")
        shards = np.searchsorted(self._first_piece, indices, side="right") - 1
        lengths = np.empty(indices.shape, dtype=np.int64)
        touched = np.unique(shards)
        if len(touched) > len(indices) // 16:  # scattered over many shards, as training reads: one by one is quicker
            return np.fromiter(map(self.length, indices.tolist()), np.int64, len(indices))
        for shard in touched:
            here = shards == shard
            local = indices[here] - self._first_piece[shard]
            offsets, _ = self._mapped[shard] or self._map(int(shard))
            lengths[here] = offsets[local + 1] - offsets[local]
        return lengths

    def source(self, index: int) -> str | None:
        """Where a piece's document came from. For looking at data; `piece` is the fast path."""
        shard, local = self._locate(index)
        return self._read(shard).column("source")[local].as_py()

    def verify(self) -> None:
        """Read everything: checksums, structure, lengths and ids. Raises ValueError at the first shard that is not
        as written.
        """
        limit = self.seq_len - len(self.special.prefix) - len(self.special.suffix)
        for number, shard in enumerate(self._shards):
            path = self.folder / shard.file
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise ValueError(f"{path} does not have the checksum in the manifest; prepare the store again")
            offsets, values = self._map(number)
            lengths = np.diff(offsets)
            if lengths.min(initial=1) < 1 or lengths.max(initial=1) > limit:
                raise ValueError(
                    f"{path} holds a piece of {lengths.min()} or {lengths.max()} tokens, outside 1 to {limit}; "
                    "the store is damaged, so prepare it anew"
                )
            check_ids(values, self.special.num_tokens, str(path))

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._first_piece[-1]:
            raise IndexError(f"piece {index} of {len(self)}")
        shard = bisect_right(self._first_piece, index) - 1
        return shard, index - self._first_piece[shard]

    def _read(self, shard: int) -> pa.RecordBatch:
        path = self.folder / self._shards[shard].file
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged ({reason}); prepare the store again") from None

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (pieces + 1,) int64 and values (tokens,) of a shard, straight from the mapped file."""
        info, dtype = self._shards[shard], np.dtype(self.manifest.dtype)
        path = self.folder / info.file
        batch = self._read(shard)
        tokens: Any = batch.column(0) if batch.num_columns else None
        if not isinstance(tokens, pa.LargeListArray) or tokens.type != _tokens_type(self.manifest.dtype):
            raise ValueError(f"{path} does not hold {_tokens_type(self.manifest.dtype)}; prepare the store again")
        offsets = np.frombuffer(tokens.buffers()[1], dtype=np.int64)[: info.pieces + 1]
        values = np.frombuffer(tokens.values.buffers()[1] or b"", dtype=dtype)[: info.tokens]
        if (
            batch.num_rows != info.pieces
            or len(offsets) != info.pieces + 1
            or offsets[0] != 0
            or offsets[-1] != len(values)
        ):
            raise ValueError(
                f"{path} does not hold the {info.pieces:,} pieces of the manifest; prepare the store again"
            )
        self._mapped[shard] = offsets, values
        return offsets, values


class SplitWriter:
    """Writes the shards of one split, holding one shard in memory: `add` batches of documents, then `finish`.

    Works in a folder that is not yet in its place (see `prepare`): shards appear under their final names, each synced
    to disk. What they hold depends on the documents and their order alone, not on how they come in batches.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        num_tokens: int,
        max_piece: int,
        shard_tokens: int = SHARD_TOKENS,
        *,
        long_documents: LongDocuments = "split",
        overlap: int = 0,
    ):
        assert shard_tokens >= max_piece >= 1
        self.folder, self.split, self.num_tokens = folder, split, num_tokens
        self.max_piece, self.shard_tokens = max_piece, shard_tokens
        self.long_documents: LongDocuments = long_documents
        self.overlap = overlap
        self.dtype = token_dtype(num_tokens)
        self.documents = self.pieces = self.tokens = self.characters = self.bytes = 0
        self.cut_documents = self.dropped_tokens = self.repeated_tokens = 0
        self.text_hash: int | None = 0  # so far; None once documents came without hashes
        self.shards: list[ShardInfo] = []
        self._clear()

    def _clear(self) -> None:
        self._values: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._sources: list[pa.Array] = []
        self._num_tokens = self._num_pieces = self._source_bytes = 0

    def add(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        sources: Sequence[str | None] | None = None,
        characters: int = 0,
        num_bytes: int = 0,
        hashes: np.ndarray | None = None,
    ) -> None:
        """Add documents, none of them empty: their ids end to end, and the length of each.

        Each is cut into pieces (see `cut`). `characters` and `num_bytes` count the text of them all, `hashes` (uint64)
        are of the text of each. Raises ValueError for an id outside the vocabulary.
        """
        assert int(lengths.sum()) == len(ids)
        assert lengths.min(initial=1) > 0
        check_ids(ids, self.num_tokens, f"the {self.split} split")
        pieces = cut(lengths, self.max_piece, self.long_documents, self.overlap)
        ids = pieces.take(ids.astype(self.dtype, copy=False))
        self.documents += len(lengths)
        self.pieces += len(pieces.lengths)
        self.tokens += len(ids)
        self.characters += characters
        self.bytes += num_bytes
        self.cut_documents += pieces.cut_documents
        self.dropped_tokens += pieces.dropped_tokens
        self.repeated_tokens += pieces.repeated_tokens
        if hashes is None or self.text_hash is None:
            self.text_hash = None
        else:  # a sum, for which it does not matter in what order documents come
            self.text_hash = (self.text_hash + int(hashes.sum(dtype=np.uint64))) % 2**64
        self._add_pieces(ids, pieces, pa.array(sources or [None] * len(lengths), pa.string()))

    def _add_pieces(self, ids: np.ndarray, pieces: Pieces, source_of_document: pa.Array) -> None:
        """A shard ends before the first piece for which it has no room: a document may go on in the next."""
        ends = np.cumsum(pieces.lengths)
        source_lengths: Any = pc.call_function("binary_length", [source_of_document])
        source_ends = np.cumsum(source_lengths.fill_null(0).to_numpy()[pieces.of_document], dtype=np.int64)
        piece = token = source_bytes = 0  # how much was taken so far
        while piece < len(ends):
            stop = min(
                int(np.searchsorted(ends, token + self.shard_tokens - self._num_tokens, side="right")),
                int(np.searchsorted(source_ends, source_bytes + SHARD_SOURCE_BYTES - self._source_bytes, side="right")),
                piece + SHARD_PIECES - self._num_pieces,
            )
            if stop <= piece and not self._num_pieces:
                stop = piece + 1  # a source that is longer than all that a shard should hold
            if stop > piece:
                self._values.append(ids[token : ends[stop - 1]])
                self._lengths.append(pieces.lengths[piece:stop])
                self._sources.append(source_of_document.take(pa.array(pieces.of_document[piece:stop])))
                self._num_tokens += int(ends[stop - 1]) - token
                self._num_pieces += stop - piece
                self._source_bytes += int(source_ends[stop - 1]) - source_bytes
                piece, token, source_bytes = stop, int(ends[stop - 1]), int(source_ends[stop - 1])
            if piece < len(ends):
                self._write_shard()

    def finish(self) -> SplitInfo:
        """Write what is left and return the split's entry for the manifest."""
        if self._num_pieces:
            self._write_shard()
        return SplitInfo(
            self.documents,
            self.pieces,
            self.tokens,
            self.characters,
            self.bytes,
            tuple(self.shards),
            self.cut_documents,
            self.dropped_tokens,
            self.repeated_tokens,
            None if self.text_hash is None else f"{self.text_hash:016x}",
        )

    @property
    def num_written(self) -> int:
        """Bytes on disk, and about those to come of what is held in memory."""
        held = self._num_tokens * self.dtype.itemsize + 12 * self._num_pieces + self._source_bytes
        return sum(shard.bytes for shard in self.shards) + held

    def state(self) -> State:
        """What `restore` needs to go on from here: all but the shards that are written."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in WRITER_COUNTS}
        facts["shards"] = [asdict(shard) for shard in self.shards]
        facts["sources"] = pa.chunked_array(self._sources, pa.string()).to_pylist()
        values = np.concatenate([np.empty(0, self.dtype), *self._values])
        return State(facts, {"values": values, "lengths": np.concatenate([np.empty(0, np.int64), *self._lengths])})

    def restore(self, state: State) -> None:
        """Go on where `state` was asked for, in a folder that holds the shards of then."""
        facts, arrays = state.facts, state.arrays
        for name in WRITER_COUNTS:
            setattr(self, name, facts[name])
        self.shards = [ShardInfo(**shard) for shard in facts["shards"]]
        self._values, self._lengths = [arrays["values"]], [arrays["lengths"]]
        self._sources = [pa.array(facts["sources"], pa.string())]
        self._num_tokens, self._num_pieces = len(arrays["values"]), len(arrays["lengths"])
        self._source_bytes = sum(len(source.encode()) for source in facts["sources"] if source is not None)

    def _write_shard(self) -> None:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype(np.int64)
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self._values)))
        batch = pa.record_batch({"tokens": tokens, "source": pa.concat_arrays(self._sources)})
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_file(buffer, batch.schema) as writer:
            writer.write_batch(batch)
        content = memoryview(buffer.getvalue())
        name = f"{self.split}-{len(self.shards):05d}.arrow"
        write_file(self.folder / name, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.shards.append(ShardInfo(name, self._num_pieces, self._num_tokens, len(content), sha256))
        self._clear()


def token_dtype(num_tokens: int) -> np.dtype:
    """The smallest unsigned type that holds every id: uint16 up to 65,536 tokens."""
    return np.dtype(np.uint16 if num_tokens <= 1 << 16 else np.uint32)


def check_ids(ids: np.ndarray, num_tokens: int, where: str) -> None:
    """Raise ValueError when an id is not below `num_tokens`."""
    if len(ids) and int(ids.max()) >= num_tokens:
        raise ValueError(
            f"{where} holds token id {int(ids.max())}, outside the vocabulary of {num_tokens} (ids 0 to "
            f"{num_tokens - 1}); use the tokenizer that made the ids"
        )


def _tokens_type(dtype: str) -> pa.DataType:
    return pa.large_list(pa.from_numpy_dtype(np.dtype(dtype)))
