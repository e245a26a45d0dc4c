"""The folder in which a store is built, beside its place: locked while in use, renamed when complete."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm_pytorch.data.store import MANIFEST

LOCK, SPOOL, TOKENIZER = "preparing.lock", "spool", "tokenizer"

OWN_NAMES = re.compile(rf"{re.escape(MANIFEST)}|{LOCK}|{SPOOL}|{TOKENIZER}|(train|valid)-\d{{5,}}\.arrow")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to build a store in, which takes the place of `out` when the block ends without an error.

    It lies beside `out` (a rename cannot cross disks) and is locked while in use. One that a killed run left is cleared
    first. Raises ValueError when `out` holds anything but a store, or another process is writing it; OSError when the
    disk is full.
    """
    out = out.expanduser().resolve()
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if _is_store(replaced) and not out.exists():  # killed between the two renames below
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
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"{out} is being prepared by another process; wait for it or choose another place") from None
    complete = False
    try:
        _clear(partial, but=LOCK)
        (partial / SPOOL).mkdir()
        yield partial
        shutil.rmtree(partial / SPOOL)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if out.exists():
            if replaced.exists():
                _clear(replaced)
            out.rename(replaced)
        partial.rename(out)
        (out / LOCK).unlink()
        _sync(out.parent)
        complete = True
        if replaced.exists():
            _clear(replaced)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f"the disk of {out.parent} is full; free some space or choose another place (nothing was left behind)"
        raise OSError(error.errno, place) from None
    finally:
        if not complete and partial.exists():
            _clear(partial)
        os.close(lock)


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


def _clear(folder: Path, but: str | None = None) -> None:
    """Delete what a store consists of, and the folder if that was all; what we did not write stays."""
    for path in list(folder.iterdir()):
        if path.name == but or not OWN_NAMES.fullmatch(path.name):
            continue
        if path.name in (SPOOL, TOKENIZER):
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
