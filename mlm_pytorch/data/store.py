"""TokenStore: a prepared corpus as memory-mapped Arrow shards with a manifest.

    folder/manifest.json          counts, dtype, seq_len, special tokens, tokenizer fingerprint; name, size, sha256 per
    shard folder/train-00000.arrow …    Arrow IPC files of one record batch each:
                                  tokens: large_list<uint16 | uint32>, source: string
    folder/valid-00000.arrow …    the held-out split, if there is one
    folder/tokenizer/             as transformers loads it

A piece is a slice of the values buffer between two offsets: no copy and no parsing, so a store of any size opens at
once and is as fast as the page cache. polars, DuckDB and `datasets` (`load_dataset("arrow", data_files=…)`) read the
shards too. Tokens are stored without framing: a reader puts `special.prefix` and `special.suffix` around each piece.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlm_pytorch.tokens import SpecialTokens

MANIFEST = "manifest.json"
FORMAT, VERSION = "mlm-pytorch token store", 1
SHARD_TOKENS = 1 << 24
SHARD_PIECES = 1 << 21  # bounds the memory that offsets take when pieces are tiny
SHARD_SOURCE_BYTES = 1 << 26  # and that of sources when they are long


@dataclass(frozen=True)
class ShardInfo:
    """One file of a store, as the manifest lists it."""

    file: str
    pieces: int
    tokens: int
    bytes: int  # of the file
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """What one split ("train" or "valid") holds."""

    documents: int
    pieces: int
    tokens: int  # without framing
    characters: int
    bytes: int  # of the text in UTF-8
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store without opening a shard."""

    dtype: str  # "uint16" or "uint32"
    seq_len: int  # limit of a framed piece
    special: SpecialTokens
    tokenizer_fingerprint: str
    splits: dict[str, SplitInfo]

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Raises ValueError when the folder holds no store, one of another format version, or a damaged manifest."""
        path = Path(folder) / MANIFEST
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{folder} is not a store (it has no {MANIFEST}); make one with mlm prepare") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); prepare the store again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} is not the manifest of a token store; give a folder made by mlm prepare")
        if content.get("version") != VERSION:
            raise ValueError(
                f"{path} has format version {content.get('version')!r}, and this program reads {VERSION}; prepare the "
                "store again"
            )
        try:
            special = dict(content["special"])
            for name in ("ids", "prefix", "suffix"):
                special[name] = tuple(special[name])
            manifest = cls(
                dtype=content["dtype"],
                seq_len=int(content["seq_len"]),
                special=SpecialTokens(**special),
                tokenizer_fingerprint=content["tokenizer_fingerprint"],
                splits={
                    name: SplitInfo(**{**split, "shards": tuple(ShardInfo(**shard) for shard in split["shards"])})
                    for name, split in content["splits"].items()
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the store again") from None
        if manifest.dtype not in ("uint16", "uint32"):
            raise ValueError(f"{path} is damaged (dtype {manifest.dtype!r}); prepare the store again")
        return manifest

    def write(self, folder: Path) -> None:
        """Written last: a folder with a manifest is complete."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        _write_file(folder / MANIFEST, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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
                    f"{path} holds a piece of {lengths.min()} or {lengths.max()} tokens, outside 1 to {limit}"
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
    to disk.
    """

    def __init__(self, folder: Path, split: str, num_tokens: int, max_piece: int, shard_tokens: int = SHARD_TOKENS):
        assert shard_tokens >= max_piece >= 1
        self.folder, self.split, self.num_tokens = folder, split, num_tokens
        self.max_piece, self.shard_tokens = max_piece, shard_tokens
        self.dtype = token_dtype(num_tokens)
        self.documents = self.split_documents = self.pieces = self.tokens = self.characters = self.bytes = 0
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
    ) -> None:
        """Add documents, none of them empty: their ids end to end, and the length of each.

        Each is cut into pieces of `max_piece` tokens and a rest. `characters` and `num_bytes` count the text of them
        all. Raises ValueError for an id outside the vocabulary.
        """
        assert int(lengths.sum()) == len(ids)
        assert lengths.min(initial=1) > 0
        check_ids(ids, self.num_tokens, f"the {self.split} split")
        of_document, piece_lengths = cut(lengths, self.max_piece)
        source_P = pa.array([sources[d] if sources else None for d in of_document], pa.string())
        self.documents += len(lengths)
        self.split_documents += int((lengths > self.max_piece).sum())
        self.pieces += len(piece_lengths)
        self.tokens += len(ids)
        self.characters += characters
        self.bytes += num_bytes
        ids = ids.astype(self.dtype, copy=False)
        ends = np.cumsum(piece_lengths)
        piece = token = 0  # how many were taken so far
        while piece < len(ends):
            # As many pieces as there is room for: a document may go on in the next shard, a piece may not.
            room = self.shard_tokens - self._num_tokens
            stop = int(np.searchsorted(ends, token + room, side="right"))
            stop = min(stop, piece + SHARD_PIECES - self._num_pieces)
            if stop > piece:
                end = int(ends[stop - 1])
                self._values.append(ids[token:end])
                self._lengths.append(piece_lengths[piece:stop])
                self._sources.append(source_P.slice(piece, stop - piece))
                self._num_tokens += end - token
                self._num_pieces += stop - piece
                self._source_bytes += self._sources[-1].nbytes
                piece, token = stop, end
            if piece < len(ends) or self._source_bytes > SHARD_SOURCE_BYTES:
                self._write_shard()

    def finish(self) -> SplitInfo:
        """Write what is left and return the split's entry for the manifest."""
        if self._num_pieces:
            self._write_shard()
        return SplitInfo(self.documents, self.pieces, self.tokens, self.characters, self.bytes, tuple(self.shards))

    def _write_shard(self) -> None:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype(np.int64)
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self._values)))
        batch = pa.record_batch({"tokens": tokens, "source": pa.concat_arrays(self._sources)})
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_file(buffer, batch.schema) as writer:
            writer.write_batch(batch)
        content = memoryview(buffer.getvalue())
        name = f"{self.split}-{len(self.shards):05d}.arrow"
        _write_file(self.folder / name, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.shards.append(ShardInfo(name, self._num_pieces, self._num_tokens, len(content), sha256))
        self._clear()


def cut(lengths: np.ndarray, max_piece: int) -> tuple[np.ndarray, np.ndarray]:
    """How documents of these lengths (at least 1) are cut: full pieces, then a rest.

    Returns for every piece the index of its document and its length, in order: ([3, 7], 3) -> ([0, 1, 1, 1], [3, 3, 3,
    1]).
    """
    pieces = -(-lengths // max_piece)
    of_document = np.repeat(np.arange(len(lengths)), pieces)
    piece_lengths = np.full(len(of_document), max_piece, dtype=np.int64)
    piece_lengths[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * max_piece
    return of_document, piece_lengths


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


def _write_file(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
