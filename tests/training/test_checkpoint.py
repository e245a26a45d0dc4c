"""Checkpoints are complete or absent, and damage is noticed."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mlm_pytorch.training.checkpoint import (
    _remove,
    checkpoints,
    damage,
    load_checkpoint,
    newest_checkpoint,
    random_states,
    restore_random,
    save_checkpoint,
)


def export(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100)


def save(run: Path, step: int, keep: int = 2, export=export) -> Path:
    tensors = {"a//momentum": torch.arange(6.0).view(2, 3).t(), "a//step": torch.tensor(3.0)}
    return save_checkpoint(run, step, export=export, optimizer=tensors, state={"step": step}, keep=keep)


def test_round_trip_and_link(tmp_path):
    path = save(tmp_path, 10)
    state, tensors = load_checkpoint(path, torch.nn.Identity())
    assert state == {"step": 10} and torch.equal(tensors["a//momentum"], torch.arange(6.0).view(2, 3).t())
    assert (tmp_path / "model").resolve() == (path / "model").resolve()
    assert not (tmp_path / "model").readlink().is_absolute(), "the run can be moved"


def test_the_state_is_there_when_the_model_is_written(tmp_path):
    """So that what is said of a model beside its weights can be of its own step."""

    def looks(folder: Path) -> None:
        assert json.loads((folder.parent / "state.json").read_text()) == {"step": 3}
        export(folder)

    save(tmp_path, 3, export=looks)


def test_the_newest_are_kept_and_nothing_foreign_is_deleted(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints/step-1/notes.txt").write_text("mine")
    for step in (2, 9, 10):
        save(tmp_path, step)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-9", "step-10"]
    assert [p.name for p in (tmp_path / "checkpoints/step-1").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "checkpoints/step-2").exists()


def test_a_copy_of_a_checkpoint_is_no_checkpoint_and_stays(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / "checkpoints/step-1-before-the-move")
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "checkpoints/step-1"
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-3", "step-1-before-the-move"}


def test_a_full_disk_leaves_the_old_and_nothing_half_written(tmp_path):
    save(tmp_path, 1)

    def full(folder: Path) -> None:
        export(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, export=full)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "checkpoints/step-1"


def test_an_export_that_is_refused_leaves_the_old(tmp_path):
    save(tmp_path, 1)
    before = (tmp_path / "model").resolve()

    def refused(folder: Path) -> None:
        export(folder)
        raise ValueError("the export computes other logits")

    with pytest.raises(ValueError, match="computes other logits"):
        save(tmp_path, 2, export=refused)
    assert (tmp_path / "model").resolve() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


@pytest.mark.parametrize("file", ["model/model.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, file):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "checkpoints/step-1"
    assert said == [f"checkpoint step-2 is passed over: {file} is damaged"]
    path.unlink()
    assert damage(tmp_path / "checkpoints/step-2") == f"{file} is missing"


def test_what_a_kill_left_is_cleared(tmp_path):
    (tmp_path / "checkpoints/.step-7.partial/model").mkdir(parents=True)
    (tmp_path / ".model.partial").symlink_to("checkpoints/step-7/model")  # half of the swap
    path = save(tmp_path, 8)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-8"]
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "model"}
    assert (tmp_path / "model").resolve() == (path / "model").resolve()


def test_folders_within_folders_go_with_their_files(tmp_path):
    def nested(folder: Path) -> None:
        (folder / "one/two").mkdir(parents=True)
        (folder / "one/two/three.txt").write_text("four")

    for step in (1, 2):
        save(tmp_path, step, keep=1, export=nested)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_generators_go_on_from_where_they_were_and_other_tensors_stay():
    cpu, momentum = torch.device("cpu"), torch.ones(3)
    saved = {"a//momentum": momentum} | random_states(cpu)
    drawn = torch.rand(4)
    restore_random(saved, cpu)
    assert saved == {"a//momentum": momentum} and torch.equal(torch.rand(4), drawn)
    restore_random(saved, cpu)  # of a checkpoint without them
    assert not torch.equal(torch.rand(4), drawn)


def test_all_damaged_is_an_error(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged; delete the folder to start anew"):
        newest_checkpoint(tmp_path, lambda _: None)


def test_an_unreadable_manifest_and_none_at_all(tmp_path):
    assert newest_checkpoint(tmp_path, pytest.fail) is None
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(json.dumps({"no": 1}))
    assert "manifest.json cannot be read" in str(damage(path))


def test_a_kill_while_an_old_one_is_deleted_leaves_no_damaged_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def killed(self, missing_ok=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        _remove(tmp_path / "checkpoints/step-1")
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-2"]
    save(tmp_path, 3)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-2", "step-3"}


def test_later_ones_that_were_passed_over_go_with_the_next_save(tmp_path):
    save(tmp_path, 5)
    (save(tmp_path, 10) / "state.json").write_text("{}")
    save(tmp_path, 7)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-5", "step-7"]
    assert (tmp_path / "model").resolve().parent.name == "step-7"


@pytest.mark.parametrize("manifest", ['{"no": 1}', '{"files": [1]}', "[]", "{", ""])
def test_a_damaged_one_of_the_same_step_makes_room(tmp_path, manifest):
    save(tmp_path, 5)
    (save(tmp_path, 10) / "manifest.json").write_text(manifest)
    assert newest_checkpoint(tmp_path, lambda _: None) == tmp_path / "checkpoints/step-5"
    assert damage(save(tmp_path, 10)) is None
    assert [p.name for p in checkpoints(tmp_path)] == ["step-5", "step-10"]


@pytest.mark.parametrize(
    ("keep", "every", "kept"), [(1, 10, [10, 21, 30, 33]), (2, 0, [30, 33]), (3, 7, [9, 18, 21, 30, 33])]
)
def test_the_last_and_every_mth_stay(tmp_path, keep, every, kept):
    for step in (3, 6, 9, 10, 18, 21, 30, 33):
        save_checkpoint(tmp_path, step, export=export, optimizer={}, state={}, keep=keep, keep_every=every)
    expected = kept if every != 7 else [9, 18, 21, 30, 33]
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == expected


def test_errors_of_safetensors_are_a_full_disk_too(tmp_path):
    def full(folder):
        export(folder)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as error:
        save(tmp_path, 1, export=full)
    assert error.value.errno == errno.ENOSPC and checkpoints(tmp_path) == []
