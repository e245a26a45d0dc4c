"""A run's folder: locked, never mixed up, gone without a trace when nothing began."""

import errno
import fcntl
import multiprocessing
from pathlib import Path

import pytest

from mlm_pytorch.data.journal import JOURNAL
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.run import begin, run_folder, store_to_prepare


def config(out: Path, **changes) -> TrainConfig:
    return TrainConfig(**{"corpus": ("a.txt",), "out": out} | changes)


def fail_inside(wanted: TrainConfig, error: Exception, *, after_begin: bool) -> None:
    with run_folder(wanted) as folder:
        store_to_prepare(folder, wanted)
        (folder / "store").mkdir()
        (folder / "store" / "train-00000.arrow").touch()
        if after_begin:
            begin(folder, wanted)
        raise error


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    out = tmp_path / "deep" / "run"
    with pytest.raises(ValueError, match="a mistake"):
        fail_inside(config(out), ValueError("a mistake"), after_begin=False)
    assert not out.exists()


def test_a_preparation_that_can_be_continued_stays(tmp_path):
    """Ctrl-C in the middle of preparing must not cost the hours that were spent on it."""

    def prepare_then(error):
        with run_folder(config(tmp_path / "run")) as folder:
            (folder / ".store.partial").mkdir(exist_ok=True)
            (folder / ".store.partial" / JOURNAL).touch()
            raise error

    for error in (KeyboardInterrupt(), OSError("no space left")):
        with pytest.raises(type(error)):
            prepare_then(error)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".store.partial"]


def test_a_run_that_began_stays_and_is_continued(tmp_path):
    with pytest.raises(RuntimeError):
        fail_inside(config(tmp_path), RuntimeError(), after_begin=True)
    assert (tmp_path / "store").is_dir()
    with run_folder(config(tmp_path, budget="1h")):
        pass
    with (
        pytest.raises(ValueError, match=r"another configuration \(seed: 0 -> 1\); repeat its command"),
        run_folder(config(tmp_path, seed=1)),
    ):
        pass


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(ValueError, match="holds 'thesis.tex' and no run; choose a new folder"),
        run_folder(config(tmp_path)),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file; name a folder"), run_folder(config(tmp_path / "thesis.tex")):
        pass


def _hold(out, ready, done):
    with run_folder(config(out)):
        ready.set()
        done.wait(30)


def test_two_processes_cannot_hold_one_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match="is in use by another process"), run_folder(config(tmp_path)):
            pass
    finally:
        done.set()
        holder.join()


def test_a_store_that_was_finished_before_a_kill_is_used_again(tmp_path):
    """Whatever ends the time between the last shard and the first step, but for the user's own mistake."""

    def prepare(folder: Path, wanted: TrainConfig) -> bool:
        store = store_to_prepare(folder, wanted)
        if store is None:
            return False
        store.mkdir()
        (store / "manifest.json").touch()
        return True

    def prepare_then(wanted: TrainConfig, error: BaseException) -> None:
        with run_folder(wanted) as folder:
            prepared.append(prepare(folder, wanted))
            raise error

    def interrupted(wanted: TrainConfig, error: BaseException) -> bool:
        with pytest.raises(type(error)):
            prepare_then(wanted, error)
        return prepared[-1]

    prepared: list[bool] = []
    out = tmp_path / "run"
    assert interrupted(config(out), KeyboardInterrupt())
    assert not interrupted(config(out), OSError("no space left"))
    assert interrupted(config(out, seed=1), KeyboardInterrupt()), "of another configuration: made anew"
    assert not interrupted(config(out, seed=1, budget="9h"), ValueError("a mistake"))
    assert not out.exists(), "a mistake leaves nothing"
    with run_folder(config(out)) as folder:
        assert prepare(folder, config(out))
        begin(folder, config(out))
        assert store_to_prepare(folder, config(out)) is None
    assert {path.name for path in out.iterdir()} == {"store", "config.yaml", ".lock"}


def test_a_kill_while_a_store_is_made_anew_does_not_pass_the_old_one_off_as_new(tmp_path):
    store = store_to_prepare(tmp_path, config(tmp_path))
    assert store is not None
    store.mkdir()
    (store / "manifest.json").touch()
    assert store_to_prepare(tmp_path, config(tmp_path, seed=1)) == store and not store.exists()  # killed here
    assert store_to_prepare(tmp_path, config(tmp_path, seed=1)) == store
    assert store_to_prepare(tmp_path, config(tmp_path)) == store
    (tmp_path / ".config.yaml.intended").write_text("from: the future")
    assert store_to_prepare(tmp_path, config(tmp_path)) == store


@pytest.mark.parametrize("error", [ValueError("--seq-len is settled by the store"), KeyboardInterrupt()])
def test_a_store_of_the_users_own_outlives_a_run_that_did_not_begin(tmp_path, error):
    """`mlm prepare --out exp/store`, hours; then `mlm train exp/store --out exp --seq-len 256`."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").touch()

    def mistaken():
        with run_folder(config(tmp_path, corpus=(str(store),))):
            raise error

    with pytest.raises(type(error)):
        mistaken()
    assert [path.name for path in tmp_path.iterdir()] == ["store"] and (store / "manifest.json").exists()
    with (
        pytest.raises(ValueError, match=r"was prepared for no run of its own; train on it \(mlm train .*/store\)"),
        run_folder(config(tmp_path)) as folder,
    ):
        store_to_prepare(folder, config(tmp_path))
    assert (store / "manifest.json").exists()


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, monkeypatch, capsys):
    def flock(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_folder(config(tmp_path)) as folder:
        assert folder == tmp_path
    assert "cannot be locked there" in capsys.readouterr().err
