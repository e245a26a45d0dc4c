"""The folder in which a store is built, beside its place: locked while in use, renamed when complete, kept with what
is complete when something stops the preparation.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlm_pytorch.data.journal import DUPLICATES, JOURNAL, TOKENIZER, WRITING, State, read_journal, write_journal
from mlm_pytorch.data.locks import lock_for
from mlm_pytorch.data.manifest import LOCK, MANIFEST, partial_folder

SPOOL = "spool"
WORKING_FOLDERS = (SPOOL, DUPLICATES)
SHARD = re.compile(r"(train|valid)-\d{5,}\.arrow")
OWN_NAMES = re.compile(
    "|".join([*map(re.escape, (MANIFEST, LOCK, SPOOL, TOKENIZER, DUPLICATES, JOURNAL, WRITING)), SHARD.pattern])
)


@dataclass
class Partial:
    """A store that is being built: its folder, and the state that its journal holds."""

    folder: Path
    identity: Mapping[str, Any] | None  # None: it cannot be continued
    state: State = field(default_factory=State)
    shards: Collection[str] | None = None  # those that belong to the journal; None: there is no journal

    def keep(self, name: str, part: State, shards: Mapping[str, int]) -> None:
        """Go on from here if something stops the preparation later. `shards`: all files that belong to it, and their
        sizes.
        """
        self.state = self.state.with_part(name, part)
        if self.identity is not None:
            write_journal(self.folder, self.identity, self.state, shards)
            self.shards = frozenset(shards)


@contextmanager
def building(
    out: Path, identity: Mapping[str, Any] | None, notice: Callable[[str], None] = lambda _: None
) -> Iterator[Partial]:
    """A folder to build a store in, which takes the place of `out` when the block ends without an error.

    It lies beside `out` (a rename cannot cross disks) and is locked while in use. What a preparation with the same
    identity left is taken up, anything else that one left is cleared, and `notice` is told which. When the block ends
    with an error, what the last `keep` named stays, and nothing where there was none. So it is with a ValueError too: a
    file that cannot be read for a while must not cost what was prepared before it, and one that was mended has another
    identity.

    Raises ValueError when `out` holds anything but a store, or another process is writing it; OSError when the disk is
    full.
    """
    out = out.expanduser().resolve()
    partial, replaced = partial_folder(out), out.with_name(f".{out.name}.replaced")
    lock = _open_locked(out, partial, replaced)
    building = Partial(partial, identity)
    try:
        state, building.shards, reason = read_journal(partial, identity)
        building.state = state or State()
        if reason:
            notice(f"starting over: an earlier preparation of {out} was interrupted, but {reason}")
        _trim(partial, building.shards)
        for name in WORKING_FOLDERS:
            (partial / name).mkdir(exist_ok=True)
        yield building
        _put_in_place(partial, out, replaced)
    except ValueError:
        if building.shards is not None:
            notice("stopped; the same command goes on from here, or starts over where its input has changed")
        raise
    except KeyboardInterrupt:
        if building.shards is not None:
            notice("stopped; the same command goes on from here")
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "free some space or choose another place (nothing was left behind)"
        if building.shards is not None:
            remedy = "free some space and give the same command again, which goes on from here"
        raise OSError(error.errno, f"the disk of {out.parent} is full; {remedy}") from None
    finally:
        # Once the store is in place, another process may build its successor in a folder of this name.
        if _is_locked_by(lock, partial):
            _trim(partial, building.shards, last=True)
        os.close(lock)


def _open_locked(out: Path, partial: Path, replaced: Path) -> int:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if _is_store(replaced) and not out.exists():  # killed between the two renames of _put_in_place
            replaced.rename(out)
        _check_replaceable(out)
        partial.mkdir(exist_ok=True)
        for path in partial.iterdir():
            if not OWN_NAMES.fullmatch(path.name):
                raise ValueError(f"{partial} holds {path.name!r}, which no preparation wrote; move it away")
        lock = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}: {error.filename}); choose another place"
        ) from None
    # The second: another process has put its store in place since the lock was opened, and the folder with it.
    if not lock_for(out, lock) or not _is_locked_by(lock, partial):
        os.close(lock)
        raise ValueError(f"{out} is being prepared by another process; wait for it or choose another place")
    return lock


def _is_locked_by(lock: int, partial: Path) -> bool:
    """Whether an open file is the lock of the folder that has this name now."""
    try:
        return os.path.samestat(os.fstat(lock), (partial / LOCK).stat())
    except OSError:
        return False


def _put_in_place(partial: Path, out: Path, replaced: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        if replaced.exists():
            _clear(replaced)
        out.rename(replaced)
    partial.rename(out)
    # Only now, so that a kill before the rename loses nothing.
    for name in (JOURNAL, WRITING, LOCK):
        (out / name).unlink(missing_ok=True)
    for name in WORKING_FOLDERS:
        shutil.rmtree(out / name)
    _sync(out.parent)
    if replaced.exists():
        _clear(replaced)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; choose another place for the store")
    others = sorted(path.name for path in out.iterdir() if not OWN_NAMES.fullmatch(path.name))
    if others or (any(out.iterdir()) and not _is_store(out)):
        held = f"holds {others[0]!r}" if others else "is not empty"
        raise ValueError(f"{out} {held} and is not a store that could be replaced; choose an empty or new folder")


def _is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _trim(partial: Path, shards: Collection[str] | None, last: bool = False) -> None:
    """Delete all but what a journal names (None: all); the folder too if `last` and nothing stays."""
    if shards is None:
        _clear(partial, but=None if last else LOCK)
        return
    for path in list(partial.iterdir()):
        if path.name in (MANIFEST, WRITING) or (SHARD.fullmatch(path.name) and path.name not in shards):
            path.unlink()


def _clear(folder: Path, but: str | None = None) -> None:
    """Delete what a store consists of, and the folder if that was all; what we did not write stays."""
    for path in list(folder.iterdir()):
        if path.name == but or not OWN_NAMES.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if but is None and not any(folder.iterdir()):
        folder.rmdir()


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
