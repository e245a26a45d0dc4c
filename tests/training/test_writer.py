import threading
from pathlib import Path

import pytest
import torch

from mlm_pytorch.training.checkpoint import checkpoints, load_checkpoint
from mlm_pytorch.training.writer import CheckpointWriter, snapshot


def export(weights, folder: Path) -> None:
    folder.mkdir()
    torch.save(dict(weights), folder / "weights.pt")


def test_snapshots_do_not_change_and_share_what_was_shared():
    weight, empty = torch.arange(6.0).view(2, 3), torch.empty(0)
    taken = snapshot({"a": weight, "tied": weight.detach(), "part": weight[1], "e": empty, "f": torch.empty(0)})
    weight.zero_()
    assert taken["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and taken["part"].tolist() == [3, 4, 5]
    assert taken["a"] is taken["tied"] and taken["a"] is not taken["part"]


def test_training_goes_on_while_what_was_there_is_written(tmp_path):
    go_on = threading.Event()

    def slow(weights, folder):
        assert go_on.wait(30)
        export(weights, folder)

    weight = torch.ones(3)
    writer = CheckpointWriter(tmp_path, export=slow, keep=2)
    writer.save(1, {"w": weight}, {"w//m": weight}, {"step": 1})
    weight.add_(1)  # the next step, before anything is on disk
    assert checkpoints(tmp_path) == []
    go_on.set()
    writer.wait()
    (saved,) = checkpoints(tmp_path)
    assert torch.load(saved / "model/weights.pt")["w"].tolist() == [1, 1, 1]
    assert load_checkpoint(saved, torch.nn.Identity())[1]["w//m"].tolist() == [1, 1, 1] and writer.seconds > 0
    writer.close()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("other logits"), KeyError("x")])
def test_what_goes_wrong_is_raised_by_the_next_call_and_the_old_stays(tmp_path, error):
    def failing(weights, folder):
        export(weights, folder)
        if folder.parent.name != ".step-1.partial":
            raise error

    writer = CheckpointWriter(tmp_path, export=failing, keep=2)
    writer.save(1, {"w": torch.ones(1)}, {}, {})
    writer.save(2, {"w": torch.ones(1)}, {}, {})
    with pytest.raises(type(error)):
        writer.wait()
    writer.check()  # said once
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1"]
    assert (tmp_path / "model").resolve().parent.name == "step-1"
    writer.save(3, {"w": torch.ones(1)}, {}, {})
    with pytest.raises(type(error)):
        writer.save(4, {"w": torch.ones(1)}, {}, {})
    writer.close()


def test_the_last_one_is_written_without_a_copy(tmp_path):
    given = []
    weight, state = torch.ones(3), torch.zeros(3)

    def noting(weights, folder):
        given.append(weights["w"].data_ptr())
        export(weights, folder)

    writer = CheckpointWriter(tmp_path, export=noting, keep=2)
    writer.save(1, {"w": weight}, {"w//m": state}, {"step": 1}, last=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1"], "it is there when the call returns"
    writer.save(2, {"w": weight}, {"w//m": state}, {"step": 2})
    writer.wait()
    assert given[0] == weight.data_ptr() != given[1]
    writer.close()
