"""Prefetching: the same items in the same order, errors where they belong, no thread left behind."""

import itertools
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.data.prefetch import prefetch


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 5), st.randoms())
@settings(max_examples=25)
def test_order_does_not_depend_on_workers(number, workers, ahead, random):
    naps = [random.choice([0, 0, 0.002]) for _ in range(number)]

    def build(item: int) -> int:
        time.sleep(naps[item])
        return item * item

    got = list(prefetch(range(number), build, workers=workers, ahead=ahead))
    assert got == [item * item for item in range(number)]


def test_work_is_done_ahead_but_not_without_end():
    planned = []

    def plan():
        for number in itertools.count():
            planned.append(number)
            yield number

    items = prefetch(plan(), lambda n: n, workers=2, ahead=3)
    assert not planned, "nothing happens before the first is asked for"
    assert [next(items) for _ in range(10)] == list(range(10))
    items.close()
    assert 10 <= len(planned) <= 9 + 5


@pytest.mark.parametrize("error", [ValueError("bad shard"), KeyError("x"), MemoryError(), SystemExit(3)])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_arrives_after_all_that_comes_before_it(error, workers):
    def build(item: int) -> int:
        if item >= 4:
            raise error
        return item

    items = prefetch(itertools.count(), build, workers=workers)
    assert list(itertools.islice(items, 4)) == [0, 1, 2, 3]
    with pytest.raises(type(error)) as caught:
        next(items)
    assert caught.value is error
    assert next(items, None) is None, "it is over"


def test_an_error_of_the_plan_arrives_too():
    def plan():
        yield from range(3)
        raise OSError("the disk is gone")

    items = prefetch(plan(), str, workers=2)
    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(items)  # keeps what came before
    assert got == ["0", "1", "2"]


def test_a_consumer_may_leave_at_any_time():
    for taken in range(4):
        items = prefetch(itertools.count(), str, workers=3)
        for _ in range(taken):
            next(items)
        items.close()
    forgotten = prefetch(itertools.count(), str)
    next(forgotten)
    del forgotten  # closed with it


def test_leaving_while_the_plan_is_slow_cancels_what_waits_for_it():
    def plan():
        yield 0
        while True:
            time.sleep(0.5)  # while a busy machine may keep us from closing
            yield 1

    built = []
    items = prefetch(plan(), built.append, workers=2, ahead=4)
    next(items)
    items.close()
    assert len(built) <= 2


def test_a_program_may_end_without_closing_it():
    program = (
        "import itertools; from mlm_pytorch.data.prefetch import prefetch; "
        "items = prefetch(itertools.count(), str); print(next(items))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(("workers", "ahead"), [(0, 2), (1, -1)])
def test_numbers_that_cannot_work(workers, ahead):
    with pytest.raises(ValueError, match="give at least 1 and 0"):
        prefetch(range(3), str, workers=workers, ahead=ahead)
