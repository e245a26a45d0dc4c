"""What steps are fed is decided by the steps themselves, not by how far a thread has come."""

import threading
import time

from list_store import SPECIAL
from small_trainer import CountingStore

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.training.feed import PREFETCH, Feed


def feed() -> Feed:
    reader = Reader(CountingStore(), 96, seed=0, longest=22, num_streams=6)
    return Feed(
        reader, PackMasker(SPECIAL, 0), rate=RateSchedule(0.30, 0.15), per_step=lambda share: 1 + int(9 * share)
    )


def test_progress_is_asked_for_by_whoever_takes_the_steps():
    """Processes whose threads are not equally quick must plan the same, though progress is judged anew meanwhile."""
    asked, by = [], set()

    def share(step: int) -> float:
        asked.append(step)
        by.add(threading.current_thread())
        return 0.0

    batches = feed().batches(5, share)
    for number in range(8):
        next(batches)
        assert asked == list(range(5, 5 + PREFETCH + 1 + number))
        time.sleep(0.01)  # the threads would go on here, if they could
    batches.close()
    assert by == {threading.main_thread()}


def test_a_change_of_progress_holds_from_the_same_step_on_however_slow_the_planner():
    def sizes(nap: float) -> list[int]:
        built, progress = feed(), [0.0]
        choose = built.reader.choose
        built.reader.choose = lambda packs: (time.sleep(nap), choose(packs))[1]  # type: ignore[method-assign]
        batches, found = built.batches(0, lambda _: progress[0]), []
        for step in range(8):
            found.append(len(next(batches).micro_batches))
            progress[0] = step / 8
        batches.close()
        return found

    assert sizes(0.0) == sizes(0.02) and len(set(sizes(0.0))) > 1
