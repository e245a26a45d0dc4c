"""Is a store what was written? Reads all of it and names the first file that is not."""

from dataclasses import dataclass
from pathlib import Path

from mlm_pytorch.data.manifest import MANIFEST, Manifest
from mlm_pytorch.data.partial import SHARD, TOKENIZER
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class VerifyReport:
    """What was read, over all splits, and found to be as written."""

    folder: Path
    shards: int
    bytes: int  # of the shards
    documents: int
    pieces: int
    tokens: int  # without framing


def verify_store(folder: str | Path) -> VerifyReport:
    """Check every shard (checksum, structure, lengths of pieces, ids), the manifest's sums, and that the tokenizer in
    the store is the one that made it.

    Raises ValueError at the first thing that is wrong, naming the file. Memory is bounded by a shard.

    >>> verify_store("my-store").shards
    4
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    _check_tokenizer(folder, manifest)
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    unlisted = sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name) and path.name not in listed)
    if unlisted:
        raise ValueError(
            f"{folder / unlisted[0]} is not in {MANIFEST}; it is of another store: remove it, or prepare this one again"
        )
    for name, split in manifest.splits.items():
        for count in ("pieces", "tokens"):
            total = sum(getattr(shard, count) for shard in split.shards)
            if total != getattr(split, count):
                raise ValueError(
                    f"{folder / MANIFEST} is damaged: {getattr(split, count):,} {count} in split {name!r}, and "
                    f"{total:,} in its shards; prepare the store again"
                )
        TokenStore.open(folder, name).verify()
    splits = manifest.splits.values()
    shards = [shard for split in splits for shard in split.shards]
    return VerifyReport(
        folder,
        len(shards),
        sum(shard.bytes for shard in shards),
        sum(split.documents for split in splits),
        sum(split.pieces for split in splits),
        sum(split.tokens for split in splits),
    )


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise ValueError(
            f"{folder / MANIFEST} is of another tokenizer (fingerprint {manifest.tokenizer_fingerprint[:12]}…) than "
            f"{folder / TOKENIZER} ({tokenizer.fingerprint[:12]}…); prepare the store again"
        )
    if tokenizer.special != manifest.special:
        raise ValueError(
            f"{folder / MANIFEST} names other special tokens than {folder / TOKENIZER}; prepare the store again"
        )
