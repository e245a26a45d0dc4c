"""Padded batches: a piece per row, few shapes, within the budget, nobody left waiting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.packing import NOTHING, Waiting, build_pack
from mlm_pytorch.data.padding import build_padded, take_rows, widths


@given(st.integers(1, 20_000))
def test_widths_are_few_and_close(capacity):
    table = widths(capacity)
    assert table[-1] == capacity and (np.diff(table) > 0).all()
    assert (table[:-1] % 8 == 0).all()
    assert len(table) <= 16 + 8 * max(0, (capacity - 1).bit_length() - 7) + 1
    steps = np.diff(table)
    assert (steps <= np.maximum(8, table[:-1] / 8)).all()


def draws(lengths):
    """A stream that repeats these lengths, and a function that takes `number` batches from it."""

    def run(number, capacity, patience):
        waiting, drawn, batches = NOTHING, 0, []

        def upcoming(count: int) -> Waiting:
            ahead = np.arange(drawn, drawn + count)
            return Waiting(ahead, ahead, np.array(lengths)[ahead % len(lengths)])

        for _ in range(number):
            taken, left = take_rows(waiting, capacity, upcoming, patience)
            drawn += len(taken) + len(left) - len(waiting)
            waiting = left
            batches.append((taken, waiting, drawn))
        return batches

    return run


def slow_rows(lengths, capacity, patience):
    """The obvious way: one piece after another into groups by width, until one is a batch or somebody is overdue."""
    table = widths(capacity).tolist()
    groups: dict[int, list[int]] = {width: [] for width in table}
    drawn = 0
    length = lambda serial: lengths[serial % len(lengths)]  # noqa: E731
    while True:
        waiting = sorted(serial for group in groups.values() for serial in group)
        if waiting and drawn - waiting[0] >= patience:
            width = next(w for w in table if waiting[0] in groups[w])
            batch = groups[width]
            shorter = sorted((s for w in table if w < width for s in groups[w]), key=lambda s: (-length(s), s))
            batch = batch + shorter[: capacity // width - len(batch)]
            groups = {w: [s for s in group if s not in batch] for w, group in groups.items()}
            yield sorted(batch)
            continue
        width = next(w for w in table if w >= length(drawn))
        groups[width].append(drawn)
        drawn += 1
        if len(groups[width]) == capacity // width:
            yield groups[width]
            groups[width] = []


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200),
    st.integers(60, 300),
    st.sampled_from([1, 5, 50, 127, 128, 129, 400]),
)
def test_take_rows_is_the_obvious_grouping(lengths, capacity, patience):
    slow = slow_rows(lengths, capacity, patience)
    for taken, waiting, drawn in draws(lengths)(8, capacity, patience):
        assert taken.serials.tolist() == next(slow)
        assert not len(waiting) or drawn - waiting.serials[0] <= patience


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(60, 300), st.integers(1, 150))
def test_rows_fit_the_budget_and_nobody_waits_for_longer_than_the_patience(lengths, capacity, patience):
    served: set[int] = set()
    before = 0
    for taken, waiting, drawn in draws(lengths)(20, capacity, patience):
        width = widths(capacity)[np.searchsorted(widths(capacity), taken.lengths.max())]
        assert len(taken) >= 1 and len(taken) * width <= capacity
        assert drawn - taken.serials.min() <= patience + (drawn - before)
        assert served.isdisjoint(taken.serials.tolist())
        served.update(taken.serials.tolist())
        assert served | set(waiting.serials.tolist()) == set(range(drawn))
        assert waiting.lengths.sum() <= capacity * len(widths(capacity))
        before = drawn


def test_a_rare_length_is_served_though_none_like_it_comes():
    lengths = [10] * 1000
    lengths[3] = 200
    batches = draws(lengths)(40, 512, 100)
    when = [number for number, (taken, *_) in enumerate(batches) if 3 in taken.serials]
    assert len(when) == 1
    taken, _, drawn = batches[when[0]]
    assert drawn - 3 == 100 and taken.lengths.tolist().count(10) == 1, "a shorter one keeps it company"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_build_padded_holds_what_a_pack_holds(lengths):
    store, pieces = ListStore(lengths), np.arange(len(lengths))
    batch = build_padded(store, pieces, pieces * 7, 64)
    pack = build_pack(store, pieces, pieces * 7)
    rows, width = batch.input_ids.shape
    assert rows == len(lengths) and width in widths(64) and width - batch.lengths.max() < 8
    assert (np.diff(batch.lengths) <= 0).all()
    assert batch.num_tokens == pack.num_tokens == batch.attention_mask.sum()
    assert (batch.input_ids[~batch.attention_mask] == SPECIAL.pad_token_id).all()
    for name in ("input_ids", "lengths", "pieces", "visits"):
        assert getattr(batch.flat(), name).tolist() == getattr(pack, name).tolist()


@pytest.mark.parametrize(("most", "fill"), [(256, 0.95), (1024, 0.95)])
def test_fill_of_text_like_lengths(most, fill):
    """Most documents are short, most tokens are in long ones that were cut."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(most, 5 + generator.geometric(0.03, 50_000))
    lengths[generator.random(50_000) < 0.34] = most
    tokens = area = 0
    for taken, _, _ in draws(lengths)(300, 8192, 16384):
        tokens += taken.lengths.sum()
        area += len(taken) * widths(8192)[np.searchsorted(widths(8192), taken.lengths.max())]
    assert tokens / area > fill
