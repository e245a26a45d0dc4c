"""What the steps are fed: masked micro-batches, made ahead of the step that takes them."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from mlm_pytorch.data.batches import Chosen, Position, Reader
from mlm_pytorch.data.prefetch import prefetch
from mlm_pytorch.training.step import MicroBatch, StandIn

PREFETCH = 2  # steps whose batches are made ahead

B = TypeVar("B")


@dataclass(frozen=True)
class Batch:
    """What one optimizer step takes of this process, where the reader stood after it, and the masking rate that it has,
    in millionths.
    """

    micro_batches: list[MicroBatch]
    position: Position
    rate: int


@dataclass(frozen=True)
class Plan:
    """What a step will be made of.

    Attributes:
        rate: the masking rate in millionths.
        packs: of the step, over all processes.
        chosen: this process's part of them.
        position: where the reader stood after them.
    """

    rate: int
    packs: int
    chosen: list[Chosen]
    position: Position


class Feed(Generic[B]):
    """Batches in training order, masked at the rate of their step.

    Args:
        reader: what is read, in which order.
        mask: masks what the reader builds, at a rate in millionths.
        rate: the masking rate in millionths as a function of progress in [0, 1].
        per_step: micro-batches of one step, over all processes, as a function of progress in [0, 1].
    """

    def __init__(
        self,
        reader: Reader[B],
        mask: Callable[[B, int], MicroBatch],
        *,
        rate: Callable[[float], int],
        per_step: Callable[[float], int],
    ):
        self.reader, self.mask, self.rate, self.per_step = reader, mask, rate, per_step
        self.position = reader.position  # after the last batch that a step has taken

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue where `Position.to_json` was taken.

        Raises:
            ValueError: a position in another store, or of another number of streams.
        """
        self.reader.restore(saved)
        self.position = self.reader.position

    def batches(self, step: int, share: Callable[[int], float]) -> Generator[Batch, None, None]:
        """The batches of the steps from `step` on; `share` is a step's progress in [0, 1].

        It is asked a fixed number of steps ahead, by whoever takes the batches: a thread that came to it sooner or
        later would make the order of things depend on chance, and several processes would not agree.
        """
        shares: SimpleQueue[float] = SimpleQueue()
        ahead = PREFETCH + 1  # what `prefetch` has in hand, the one that is waited for included
        for number in range(ahead):
            shares.put(share(step + number))
        with closing(prefetch(self._plans(shares), self._make, ahead=PREFETCH)) as made:
            for number, batch in enumerate(made, start=step + ahead):
                yield batch
                shares.put(share(number))

    def _plans(self, shares: "SimpleQueue[float]") -> Iterator[Plan]:
        while True:
            progress = shares.get()
            packs = self.per_step(progress)
            yield Plan(self.rate(progress), packs, list(self.reader.choose(packs)), self.reader.position)

    def _make(self, plan: Plan) -> Batch:
        micro_batches = [self.mask(self.reader.build(one), plan.rate) for one in plan.chosen]
        missing = -(-plan.packs // self.reader.world_size) - len(micro_batches)  # of as many as others may have
        micro_batches += [StandIn(self.mask(self.reader.first_piece(), plan.rate)) for _ in range(missing)]
        return Batch(micro_batches, plan.position, plan.rate)
