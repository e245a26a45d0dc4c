"""Work done ahead of whoever waits for it, in background threads, in the order of a single one.

Threads, not processes: what they do is array work that releases the interpreter's lock, on a memory-mapped store that
they share with the consumer without a copy. `benchmarks/batches.py` measures what that costs a consumer that holds the
lock all the time.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")

_END = object()


def prefetch(
    plan: Iterable[S], build: Callable[[S], T], *, workers: int = 1, ahead: int = 2
) -> Generator[T, None, None]:
    """Yield `build(item)` for every item of `plan`, in order, made while the consumer is busy with earlier ones.

    One thread advances `plan`, so it may keep state and must be nobody else's meanwhile; `workers` threads build, so
    `build` must depend on nothing but its argument. Which thread does what can therefore not be seen in what is
    yielded. Each runs torch's operations on one core: a second team of threads would fight the training's for cores.

    An exception of either is raised here, after all that comes before it. Closing the generator, as happens when its
    consumer is done with it, ends the threads once they have finished the items in hand.

    Args:
        plan: what to do; advanced at most `workers + ahead` items beyond what was yielded.
        build: does it.
        workers: threads that build.
        ahead: items that may lie ready or in the making besides one per worker.

    Raises:
        ValueError: no workers, or less than nothing ahead.

    Example:
        >>> list(prefetch(range(4), lambda n: n * n, workers=2))
        [0, 1, 4, 9]
    """
    if workers < 1 or ahead < 0:
        raise ValueError(f"{workers} workers with {ahead} items ahead cannot work; give at least 1 and 0")
    return _prefetch(plan, build, workers, ahead)


def _prefetch(plan: Iterable[S], build: Callable[[S], T], workers: int, ahead: int) -> Generator[T, None, None]:
    items = iter(plan)
    planner = ThreadPoolExecutor(1, "plan", _one_core)
    builders = ThreadPoolExecutor(workers, "build", _one_core)
    pending: deque[Future[T | object]] = deque()
    python_ends = sys.is_finalizing  # a local name: when Python ends, a module's own are gone

    def finish(planned: "Future[S | object]") -> T | object:
        item = planned.result()
        return item if item is _END else build(item)  # type: ignore[arg-type]  # the other kind is excluded

    try:
        while True:
            while len(pending) < workers + ahead:
                pending.append(builders.submit(finish, planner.submit(next, items, _END)))
            result = pending.popleft().result()
            if result is _END:
                return
            yield result  # type: ignore[misc]  # as above
    finally:
        if not python_ends():  # which has ended the threads already
            planner.shutdown(cancel_futures=True)  # whoever waits for a plan learns that none will come
            builders.shutdown(cancel_futures=True)


def _one_core() -> None:
    torch.set_num_threads(1)
