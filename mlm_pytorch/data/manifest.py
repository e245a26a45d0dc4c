"""The manifest of a store: all that is known of it without opening a shard."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mlm_pytorch.data.pieces import LongDocuments
from mlm_pytorch.tokens import SpecialTokens

MANIFEST = "manifest.json"
LOCK = "preparing.lock"
FORMAT, VERSION = "mlm-pytorch token store", 1


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
    cut_documents: int = 0  # longer than a piece
    dropped_tokens: int = 0  # not stored, because long documents were truncated
    repeated_tokens: int = 0  # stored again, because windows overlap
    # Of the documents as they were read, so that it tells whether two stores hold the same text, whatever tokenizer and
    # piece length: the sum of all hashes modulo 2^64, 16 hex digits. None in a store that does not say.
    text_hash: str | None = None

    @property
    def text_tokens(self) -> int:
        """Tokens of the documents, whose characters and bytes are counted: with what was cut off, nothing twice."""
        return self.tokens + self.dropped_tokens - self.repeated_tokens

    def may_be_text_of(self, other: "SplitInfo") -> bool:
        """Whether both hold the same documents: as their hashes say, and where a store is too old to have one, as far
        as their sizes do.
        """
        if self.text_hash is not None and other.text_hash is not None:
            return self.text_hash == other.text_hash
        return (self.documents, self.characters, self.bytes) == (other.documents, other.characters, other.bytes)


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store without opening a shard."""

    dtype: str  # "uint16" or "uint32"
    seq_len: int  # limit of a framed piece
    special: SpecialTokens
    tokenizer_fingerprint: str
    splits: dict[str, SplitInfo]
    long_documents: LongDocuments = "split"  # how they were cut
    overlap: int = 0  # tokens that neighbouring windows share

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Raises ValueError when the folder holds no store, one of another format version, or a damaged manifest."""
        path = Path(folder) / MANIFEST
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(_not_a_store(Path(folder))) from None
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
                long_documents=content.get("long_documents", "split"),
                overlap=content.get("overlap", 0),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the store again") from None
        if manifest.dtype not in ("uint16", "uint32"):
            raise ValueError(f"{path} is damaged (dtype {manifest.dtype!r}); prepare the store again")
        return manifest

    def write(self, folder: Path) -> None:
        """Written last: a folder with a manifest is complete."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_file(folder / MANIFEST, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def partial_folder(out: Path) -> Path:
    """Where a store is built before it takes its place."""
    out = out.expanduser().resolve()
    return out.with_name(f".{out.name}.partial")


def _not_a_store(folder: Path) -> str:
    lock = partial_folder(folder) / LOCK
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"{folder} is not yet a store: another process is preparing it; wait for that to end"
    except OSError:
        return f"{folder} is not a store (it has no {MANIFEST}); make one with mlm prepare"
    return f"{folder} is not yet a store: preparing it was interrupted; give that mlm prepare command again to go on"


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
