"""Curves: whatever the number of lines and however they come, no spike is lost and memory does not grow."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.report import curves as module
from mlm_pytorch.report.curves import Buckets, Curves, axis_and_values, parsed

odd = st.sampled_from([math.nan, math.inf, "x", [1], 10**400, True])
numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-10, 10), odd)


def as_number(value):
    if not isinstance(value, int | float):
        return None
    return math.inf if isinstance(value, int) and abs(value) > 10**300 else float(value)


@given(st.lists(numbers, max_size=300), st.integers(1, 40), st.sampled_from([2, 4, 16]))
@settings(max_examples=100)
def test_buckets_equal_the_slow_way(values, part, least):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUCKETS", least)
        buckets = Buckets(("loss",))
        lines = [{"loss": value} for value in values]
        for start in range(0, len(lines), part):
            buckets.add(lines[start : start + part])
        found = {name: getattr(buckets, name)("loss") for name in ("mean", "low", "high", "bad")}
    width = 1
    while len(values) > 2 * least * width:
        width *= 2
    groups = [[as_number(v) for v in values[i : i + width]] for i in range(0, len(values), width)]
    assert buckets.width == width and len(buckets) == len(groups)
    for index, group in enumerate(groups):
        finite = [v for v in group if v is not None and math.isfinite(v)]
        assert found["bad"][index] == sum(v is not None and not math.isfinite(v) for v in group)
        if finite:
            assert found["mean"][index] == pytest.approx(np.mean(finite), abs=1e-6)
            assert (found["low"][index], found["high"][index]) == (min(finite), max(finite))
        else:
            assert all(np.isnan(found[name][index]) for name in ("mean", "low", "high"))


def line(step: int, **values) -> str:
    return json.dumps({"step": step, "tokens": 100 * step, "seconds": step / 10, "loss": 9 - step / 100} | values)


def test_held_out_lines_take_tokens_and_time_from_the_step_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([line(1), line(2), '{"step": 2, "valid_loss": 7.5}', line(3)]) + "\n")
    curves = Curves(path).update()
    assert (curves.held_out.last["tokens"], curves.held_out.last["seconds"]) == (200, 0.2)
    assert curves.best == (7.5, 2)


def test_only_what_is_new_is_read_and_a_line_without_an_end_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curves = Curves(path)
    assert curves.update().training.num_lines == 0  # no file yet
    path.write_text(line(1) + "\n" + line(2)[:20])
    assert curves.update().training.num_lines == 1 and curves.damaged == 0
    path.write_text(line(1) + "\n" + line(2) + "\n" + line(3) + "\n")
    assert curves.update().training.last["step"] == 3 and curves.training.num_lines == 3
    path.write_text(line(1) + "\n")  # cut back to a checkpoint
    assert curves.update().training.num_lines == 1


@pytest.mark.parametrize("more", [0, 1, 30])
def test_a_file_that_was_cut_back_and_grew_past_where_reading_stopped_is_read_anew(tmp_path, more):
    """As it does where a run goes back to a checkpoint and on from there."""
    path = tmp_path / "metrics.jsonl"
    kept = [line(step) for step in range(1, 11)]
    path.write_text("\n".join([*kept, *(line(step, loss=99.0) for step in range(11, 21)), ""]))
    curves = Curves(path).update()
    again = [line(step, seconds=step / 10 + 3, rollbacks=1) for step in range(11, 21 + more)]
    path.write_text("\n".join([*kept, *again, '{"step": 20, "valid_loss": 4.2}', ""]))
    curves.update()
    fresh = Curves(path).update()
    assert curves.damaged == 0 and curves.best == (4.2, 20) and curves.training.last == fresh.training.last
    assert curves.training.mean("loss").tolist() == fresh.training.mean("loss").tolist()


def test_the_best_is_of_the_weights_that_a_run_leaves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ({"step": i, "valid_loss": i, "ema_valid_loss": 9 - i} for i in (3, 4, 5))
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert Curves(path).update().best == (4, 5)


@pytest.mark.parametrize(
    "damage", ["\x00\x00", "{", "[1]", "null", '{"loss": 1}, {"loss": 2}', "[" * 100_000, "\udcff", '"' + "9" * 5000]
)
def test_damaged_lines_are_counted_and_the_others_kept(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([line(1), damage, "", line(2), ""]).encode(errors="surrogateescape"))
    curves = Curves(path).update()
    assert curves.damaged == 1 and curves.training.num_lines == 2


def test_a_file_without_line_ends_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(module, "_BLOCK", 600)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((line(1) + "\n").encode() + b"x" * 5000 + b"\n" + (line(2) + "\n").encode())
    curves = Curves(path).update()
    assert curves.damaged == 1 and curves.training.num_lines == 2


def test_parsing_at_once_equals_parsing_one_by_one():
    lines = [line(i).encode() for i in range(10)]
    assert parsed(lines) == ([json.loads(one) for one in lines], 0)
    assert parsed([*lines, b"x"]) == ([json.loads(one) for one in lines], 1)


def test_what_is_drawn_is_json_with_spikes():
    buckets = Buckets(("step", "tokens", "seconds", "loss", "lr"))
    lines = [{"step": i, "loss": 5.0, "lr": 0.1} for i in range(5000)]
    lines[1234]["loss"] = 1e4
    lines[4000]["loss"] = math.nan
    buckets.add(lines)
    drawn = axis_and_values(buckets, ("loss", "lr"))
    assert set(drawn) == {"width", "step", "loss", "lr"} and drawn["width"] == 8
    assert max(drawn["loss"]["high"]) == 1e4 and drawn["loss"]["low"][1234 // 8] == 5
    assert drawn["loss"]["bad"] == {str(4000 // 8): 1}
    assert set(drawn["lr"]) == {"mean"}  # nothing to shade
    json.dumps(drawn, allow_nan=False)
