import sys
import types

import pytest

from mlm_pytorch.training import trackers
from mlm_pytorch.training.trackers import TensorBoard, choose_trackers, open_trackers


def only(*installed):
    return lambda name: object() if name in installed else None


def test_which_trackers_are_opened(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", only("tensorboard"))
    assert choose_trackers(()) == ("tensorboard",)
    assert choose_trackers(("none",)) == ()
    assert choose_trackers(("tensorboard", "tensorboard")) == ("tensorboard",)
    with pytest.raises(ValueError, match="--track wandb needs the package wandb, which is not installed; pip install"):
        choose_trackers(("tensorboard", "wandb"))
    with pytest.raises(ValueError, match="--track none and --track tensorboard contradict each other"):
        choose_trackers(("tensorboard", "none"))
    monkeypatch.setattr(trackers, "find_spec", only())
    assert choose_trackers(()) == ()


def points(folder) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_a_curve_has_no_double_points_after_a_kill(tmp_path, monkeypatch):
    """Nor are its files read in another order, where names of one second would be: file 10 sorts before file 9."""
    files = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(files, "_global_uid", files.AtomicCounter(9))
    first = TensorBoard(tmp_path)
    for step in range(1, 8):
        first.log(step, {"train/loss": float(step)})
    first.flush()  # and is killed, after a checkpoint at 5
    second = TensorBoard(tmp_path)
    second.rewind(5)
    for step in range(6, 10):
        second.log(step, {"train/loss": 10.0 * step})
    second.rewind(7)  # goes back within a sitting
    second.log(8, {"train/loss": 800.0})
    second.close()
    expected = [(step, float(step)) for step in range(1, 6)] + [(6, 60.0), (7, 70.0), (8, 800.0)]
    assert points(tmp_path) == expected
    first.close()


def test_a_run_that_begins_again_has_a_curve_of_its_own(tmp_path):
    """Killed before its first checkpoint, it has nothing to go on from, and its points stand for nothing."""
    pytest.importorskip("tensorboard")
    first = TensorBoard(tmp_path)
    for step in range(5):
        first.log(step, {"train/loss": float(step)})
    first.flush()
    again = TensorBoard(tmp_path)
    again.rewind(0)
    for step in range(3):
        again.log(step, {"train/loss": 10.0 * step})
    again.close()
    assert points(tmp_path) == [(0, 0.0), (1, 10.0), (2, 20.0)]
    first.close()


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options["id"])
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        (tracker,) = open_trackers(("wandb",), tmp_path, config={"seed": 1})
        tracker.rewind(3)
        tracker.log(4, {"train/loss": 1.0})
        tracker.flush()
        tracker.close()
    assert calls == [None, (4, {"train/loss": 1.0}), "finished", "abc", (4, {"train/loss": 1.0}), "finished"]
