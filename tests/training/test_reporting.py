import io

import pytest
import torch
from rich.console import Console

from mlm_pytorch.training.metrics import Display, read_metrics
from mlm_pytorch.training.reporting import Reporter, Watch, described
from mlm_pytorch.training.throughput import Cost


class Curves:
    def __init__(self):
        self.points, self.rewound = [], []

    def log(self, step, values):
        self.points.append((step, dict(values)))

    def flush(self):
        pass

    def rewind(self, step):
        self.rewound.append(step)

    def close(self):
        self.points.append("closed")


def reporter(folder, **watch):
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    return Reporter(folder, display, Watch(**watch), torch.device("cpu")), out


def test_a_step_is_told_everywhere(tmp_path):
    curves = Curves()
    told, out = reporter(tmp_path, trackers=[curves], cost=Cost(100.0, 1000.0), peak=10_000.0)
    told.open(0, 0)
    values = {"step": 1, "num_targets": 2, "loss": 3.0, "grad_norm": float("nan"), "skipped_steps": 0}
    told.step(dict(values), num_tokens=10, seconds=0.5)
    told.step(values | {"step": 2}, num_tokens=10, seconds=0.5)  # within a second: no point
    told.held_out({"step": 2, "valid_loss": 2.5, "valid_accuracy": 0.5})
    told.took(0.5, 1)
    told.show(0.1, 75.0, 10)
    told.close()
    first, second, valid = read_metrics(tmp_path / "metrics.jsonl")
    assert first["tokens_per_second"] == 20.0 and first["peak_share"] == 0.6 and first["memory_bytes"] > 1e6
    assert "grad_norm" not in first and second["step"] == 2 and valid["valid_loss"] == 2.5
    steps = [step for step, _ in curves.points[:-1]]
    assert steps == [1, 2] and curves.points[0][1]["train/loss"] == 3.0
    assert curves.points[1] == (2, {"valid/loss": 2.5, "valid/accuracy": 0.5}) and curves.points[2] == "closed"
    assert "training  10%  1:15 left, step 2, loss 3.000, 20 tokens/s (60% of peak), gradient nan" in out.getvalue()


def test_several_processes_share_what_several_devices_can_do(tmp_path):
    told, _ = reporter(tmp_path, cost=Cost(100.0, 1000.0), peak=10_000.0, processes=4)
    told.open(0, 0)
    told.step({"step": 1, "num_targets": 8}, num_tokens=40, seconds=0.5)  # four times the step of one, above
    told.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["peak_share"] == 0.6


def test_going_on_and_going_back_forget_what_came_after(tmp_path):
    curves = Curves()
    told, _ = reporter(tmp_path, trackers=[curves])
    told.open(0, 0)
    told.held_out({"step": 1})
    length = told.flush()
    told.held_out({"step": 2})
    told.rewind(length, 1)
    told.held_out({"step": 2, "again": True})
    told.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2, "again": True}]
    again, _ = reporter(tmp_path, trackers=[curves])
    again.open(length, 1)
    again.close()
    assert curves.rewound == [0, 1, 1] and read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_metrics_that_are_gone_are_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    told, out = reporter(tmp_path)
    told.open(100, 7)
    told.held_out({"step": 8})
    told.close()
    assert "metrics.jsonl lacks 84 bytes that the checkpoint knows of" in out.getvalue()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 8}]


def test_a_failing_callback_is_said_and_no_more(tmp_path):
    def fails():
        raise KeyError("page")

    told, out = reporter(tmp_path, after_evaluation=fails)
    told.open(0, 0)
    told.evaluated()
    told.close()
    assert "what should follow an evaluation failed: KeyError: 'page'" in out.getvalue()


def test_a_line_stays_readable_without_the_optional_fields():
    assert described({}, 5.0) == "5 tokens/s"


def test_a_pause_is_spread_over_the_sitting(tmp_path):
    """An evaluation of 20 s among steps of 30 ms: within the last hundred steps alone it would count sevenfold."""
    told, _ = reporter(tmp_path)
    for _ in range(1000):
        told.took(0.06, 2)
    told.took(20.06, 2)
    for _ in range(99):
        told.took(0.06, 2)
    each = (0.06 * 1100 + 20) / 1100
    assert told.seconds_per_step == pytest.approx(each, rel=0.02)
    assert told.seconds_per_pack == pytest.approx(each / 2, rel=0.02)


def test_a_pace_that_changes_is_followed(tmp_path):
    told, _ = reporter(tmp_path)
    for seconds in (0.1, 0.2):
        for _ in range(200):
            told.took(seconds, 1)
    assert told.seconds_per_pack == pytest.approx(0.2)


def test_a_pause_among_the_first_steps_is_no_pace(tmp_path):
    """A compilation of a minute on the twelfth step of 0.1 s: an hour more holds thousands of steps, not 58."""
    told, _ = reporter(tmp_path)
    for seconds in (*[0.1] * 11, 60.0):
        told.took(seconds, 1)
    assert told.seconds_per_step < 1.0


def test_a_slowdown_that_lasts_is_a_new_pace(tmp_path):
    told, _ = reporter(tmp_path)
    for seconds in (*[1.0] * 1000, *[4.0] * 30):
        told.took(seconds, 1)
    assert told.seconds_per_step == pytest.approx(4.0, rel=0.01)
