"""A run's folder: made once, locked while in use, continued by the same command.

config.yaml   store/ (with tokenizer/)   metrics.jsonl   checkpoints/   model -> checkpoints/step-N/model
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm_pytorch.data.journal import JOURNAL
from mlm_pytorch.data.locks import lock_for
from mlm_pytorch.data.manifest import MANIFEST
from mlm_pytorch.training.config import TrainConfig

CONFIG, LOCK, STORE = "config.yaml", ".lock", "store"
# What a run may hold before it begins: the corpus is prepared first.
_INTENDED = f".{CONFIG}.intended"
_OF_STORE = (STORE, f".{STORE}.partial", f".{STORE}.replaced")
_BEFORE_BEGIN = (LOCK, *_OF_STORE, f".{CONFIG}.partial", _INTENDED)


@contextmanager
def run_folder(config: TrainConfig) -> Iterator[Path]:
    """Open the folder of a run, new or to be continued, and hold it for this process alone.

    A run begins with `begin`. If something ends it before, a preparation that can be continued stays, and a finished
    store as well, unless it was the user's mistake; all else that was made for it is removed again.

    Raises:
        ValueError: the folder holds something else, another run, or is in use.
    """
    folder = config.out
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")
    if folder.is_dir() and not (folder / CONFIG).is_file():
        foreign = [path.name for path in folder.iterdir() if path.name not in _BEFORE_BEGIN]
        if foreign:
            raise ValueError(f"--out {folder} holds {sorted(foreign)[0]!r} and no run; choose a new folder")
    if (folder / CONFIG).is_file():
        before = TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8"))
        changed = before.differences(config)
        if changed:
            raise ValueError(
                f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
                "repeat its command or choose another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    if not lock_for(folder, handle):
        os.close(handle)
        raise ValueError(f"{folder} is in use by another process; wait for it or choose another --out")
    mistake = True
    try:
        yield folder
    except ValueError:
        raise
    except BaseException:
        mistake = False
        raise
    finally:
        if not (folder / CONFIG).is_file():
            _forget(folder, keep_store=not mistake)
        os.close(handle)


def store_to_prepare(folder: Path, config: TrainConfig) -> Path | None:
    """Where the run's own store is to be prepared; None where it is complete already, for this configuration.

    Between the end of a preparation and `begin` lies a while, and a kill there must not cost the preparation: what the
    store is for is recorded before it is made.

    Raises:
        ValueError: a store of the user's own lies there.
    """
    if (folder / CONFIG).is_file():
        return None
    store, intended = folder / STORE, folder / _INTENDED
    if store.exists() and not intended.is_file():
        raise ValueError(
            f"{store} was prepared for no run of its own; train on it (mlm train {store}) or choose another --out"
        )
    same = intended.is_file() and not _differences(intended, config)
    if same and (store / MANIFEST).is_file():
        return None
    if not same:
        if store.is_dir():  # of another configuration; gone before the record says otherwise
            shutil.rmtree(store)
        _write(intended, config)
    return store


def _differences(recorded: Path, config: TrainConfig) -> list[str]:
    try:
        return TrainConfig.from_yaml(recorded.read_text(encoding="utf-8")).differences(config)
    except ValueError as error:  # of another version
        return [str(error)]


def _write(path: Path, config: TrainConfig) -> None:
    fresh = path.with_name(f".{CONFIG}.partial")
    fresh.write_text(config.to_yaml(), encoding="utf-8")
    fresh.replace(path)


def begin(folder: Path, config: TrainConfig) -> None:
    """Record the configuration: from here on the folder is a run, and the same command continues it."""
    _write(folder / CONFIG, config)
    (folder / _INTENDED).unlink(missing_ok=True)


def _forget(folder: Path, *, keep_store: bool) -> None:
    own = (folder / _INTENDED).is_file()  # otherwise the store is the user's
    kept = keep_store and (folder / STORE / MANIFEST).is_file()
    for name in _BEFORE_BEGIN:
        path = folder / name
        if not own and name in _OF_STORE:
            continue
        if (path / JOURNAL).is_file() or (kept and name in (STORE, _INTENDED)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
