"""What a step reads: packs or padded batches, in the computed order, by any number of processes, from any point on.

Batch k comes from stream k mod G and goes to process k mod world_size, whatever the number of processes. What must be
remembered is, per stream, how far it has drawn and which pieces wait for a place.

"Every piece once an epoch" is exact per visit: visit v of each piece is served once, for every v. An epoch has no
border in time: while the last pieces of a visit wait for a place (`take_pack` and `take_rows` bound for how long), the
first of the next are served, and streams may be some packs ahead of each other. A store smaller than a pack is repeated
within it, each visit under masks of its own.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Generic, TypeVar

import numpy as np

from mlm_pytorch.data.order import NUM_STREAMS, Order
from mlm_pytorch.data.packing import NOTHING, Pack, Pieces, Upcoming, Waiting, build_pack, take_pack
from mlm_pytorch.data.padding import PaddedBatch, build_padded, take_rows

_DRAW_AHEAD = 512  # serials whose order is computed in one go

B = TypeVar("B")


@dataclass(frozen=True)
class Layout(Generic[B]):
    """How pieces become batches.

    Attributes:
        choose: takes the queue, the budget of tokens, what comes next and the patience in draws; returns the pieces of
            a batch and those that then wait.
        build: lays the store's pieces, at their visits, out within the budget of tokens.
        num_streams: G where none is asked for.
    """

    choose: Callable[[Waiting, int, Upcoming, int], tuple[Waiting, Waiting]]
    build: Callable[[Pieces, np.ndarray, np.ndarray, int], B]
    num_streams: int


FLAT: Layout[Pack] = Layout(lambda w, capacity, upcoming, _: take_pack(w, capacity, upcoming), build_pack, NUM_STREAMS)
# One queue for all: it must gather pieces of like lengths, and does so the sooner the more pieces pass by.
PADDED: Layout[PaddedBatch] = Layout(take_rows, build_padded, 1)


def sample_of_pieces(store: Pieces, max_pieces: int) -> Sequence[int]:
    """Up to `max_pieces` numbers of pieces: all of a store, or runs of 32, evenly over it."""
    if len(store) <= max_pieces:
        return range(len(store))
    runs = max(1, max_pieces // 32)
    starts = np.linspace(0, len(store) - max_pieces // runs, runs).astype(np.int64)
    return (starts[:, None] + np.arange(max_pieces // runs)).flatten().tolist()


def count_tokens(store: Pieces, max_pieces: int = 8192) -> np.ndarray:
    """How often each token occurs (num_tokens,) int64 in up to `max_pieces` pieces, evenly over a store."""
    counts = np.zeros(store.special.num_tokens, dtype=np.int64)
    for index in sample_of_pieces(store, max_pieces):
        counts += np.bincount(store.piece(index), minlength=len(counts))
    return counts


@dataclass(frozen=True)
class Cursor:
    """How far a stream has come: serials drawn so far, and those drawn that still wait."""

    drawn: int = 0
    waiting: Waiting = NOTHING

    @property
    def served(self) -> int:
        """Pieces that batches have taken; grows with every batch, as what was drawn need not."""
        return self.drawn - len(self.waiting)


@dataclass(frozen=True)
class Position:
    """Where a reader stands: the next batch's number and every stream's cursor. Plain data, saved as JSON."""

    num_pieces: int  # of the store that it is a position in
    next_pack: int
    cursors: tuple[Cursor, ...]

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists, which `Reader.restore` takes."""
        return {
            "num_pieces": self.num_pieces,
            "next_pack": self.next_pack,
            "drawn": [cursor.drawn for cursor in self.cursors],
            "waiting": [cursor.waiting.serials.tolist() for cursor in self.cursors],
            "lengths": [cursor.waiting.lengths.tolist() for cursor in self.cursors],
        }

    @classmethod
    def merge(cls, positions: Sequence["Position"]) -> "Position":
        """The position of a whole run from those of all its processes, each of which follows its own streams only.

        Raises:
            ValueError: processes that stand at different batches.
        """
        numbers = {position.next_pack for position in positions}
        if len(numbers) != 1:
            raise ValueError(f"processes stand at different batches {sorted(numbers)}; save all after the same step")
        cursors = zip(*(position.cursors for position in positions), strict=True)
        furthest = tuple(max(same, key=lambda cursor: cursor.served) for same in cursors)
        return cls(positions[0].num_pieces, numbers.pop(), furthest)


@dataclass(frozen=True)
class Chosen:
    """The pieces of a batch that is not yet built, and how often each was served before: (n,) int64 each."""

    pieces: np.ndarray
    visits: np.ndarray


class Reader(Generic[B]):
    """Batches in training order, for one of `world_size` processes: packs, or padded batches with layout=PADDED.

    `take` is `choose`, which keeps the books and must run in order, then `build`, which reads the tokens, depends on
    nothing but its argument, and may run anywhere.

    Args:
        store: what to read.
        capacity: T, the tokens of a pack, or the budget of a padded batch.
        seed: of the order.
        longest: tokens of the store's longest piece, framing counted.
        layout: FLAT or PADDED.
        num_streams: G; the same for a run's whole life. By default the layout's.
        rank, world_size: this process, and how many there are. Any number reads the same batches. Where G is a
            multiple of it, a process follows its own streams alone; else up to G of them, of which it builds its part.

    Raises:
        ValueError: an empty store, a capacity below the store's longest piece, or numbers that cannot be.

    Example:
        >>> reader = Reader(store, 8192, seed=0, longest=store.seq_len)
        >>> first, second = reader.take(2)
        >>> resumed = Reader(store, 8192, seed=0, longest=store.seq_len, rank=1, world_size=3)
        >>> resumed.restore(reader.position.to_json())
    """

    def __init__(
        self,
        store: Pieces,
        capacity: int,
        *,
        seed: int,
        longest: int,
        layout: Layout[B] = FLAT,  # type: ignore[assignment]  # the default of a type variable is always an exception
        num_streams: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        num_streams = layout.num_streams if num_streams is None else num_streams
        if len(store) == 0:
            raise ValueError("the store holds no pieces; there is nothing to train on")
        if longest > capacity:
            raise ValueError(
                f"a pack of {capacity} tokens cannot hold a piece of {longest}; raise --pack-tokens or lower --seq-len"
            )
        if num_streams < 1:
            raise ValueError(f"num_streams {num_streams} is too small; give at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not among the {world_size} processes; count from 0")
        framing = len(store.special.prefix) + len(store.special.suffix)
        mean_length = store.num_tokens / len(store) + framing
        self.store, self.capacity, self.layout = store, capacity, layout
        self.order = Order(len(store), seed, num_streams, block=max(1, int(capacity / mean_length)))
        self.patience = min(2 * capacity, max(64, len(store) // (4 * num_streams)))
        self.rank, self.world_size = rank, world_size
        self.position = Position(len(store), 0, (Cursor(),) * num_streams)
        self._framing = framing
        self._ahead: dict[int, Waiting] = {}  # a cache: nothing in it is state

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue where `Position.to_json` was taken; costs the same after any number of batches.

        Raises:
            ValueError: a position saved with another store or number of streams.
        """
        if saved["num_pieces"] != len(self.store):
            raise ValueError(
                f"the saved position is in a store of {saved['num_pieces']:,} pieces, this one has "
                f"{len(self.store):,}; continue with the store that the run began with"
            )
        if len(saved["drawn"]) != self.order.num_streams:
            raise ValueError(
                f"the saved position has {len(saved['drawn'])} streams, this run {self.order.num_streams}; "
                "keep them equal"
            )
        cursors = []
        for stream, drawn in enumerate(saved["drawn"]):
            serials = np.array(saved["waiting"][stream], dtype=np.int64)
            lengths = np.array(saved["lengths"][stream], dtype=np.int64)
            cursors.append(Cursor(drawn, Waiting(serials, self.order.serve(stream, serials)[0], lengths)))
        self.position = Position(len(self.store), saved["next_pack"], tuple(cursors))
        self._ahead = {}

    def choose(self, num_packs: int) -> Iterator[Chosen]:
        """The next `num_packs` batches of all processes; yields this one's, yet to be built."""
        shared = gcd(self.order.num_streams, self.world_size)
        for _ in range(num_packs):
            number = self.position.next_pack
            stream = number % self.order.num_streams
            cursors, chosen = self.position.cursors, None
            if stream % shared == self.rank % shared:  # some batch of this stream is ours
                taken, cursor = self._take(stream, cursors[stream])
                cursors = (*cursors[:stream], cursor, *cursors[stream + 1 :])
                if number % self.world_size == self.rank:
                    chosen = Chosen(taken.pieces, self.order.visits(stream, taken.serials))
            self.position = Position(len(self.store), number + 1, cursors)
            if chosen is not None:
                yield chosen

    def build(self, chosen: Chosen) -> B:
        """Lay out what was chosen. A pure function; several threads may run it at once."""
        return self.layout.build(self.store, chosen.pieces, chosen.visits, self.capacity)

    def first_piece(self) -> B:
        """The store's first piece by itself, as short as it is: for whoever needs some batch, whatever it holds."""
        first = np.zeros(1, dtype=np.int64)
        return self.layout.build(self.store, first, first, int(self.store.lengths(first)[0]) + self._framing)

    def mean_tokens(self, num_packs: int = 256) -> float:
        """Tokens of a batch, padding not counted, on average over the first of the order: less than the capacity, since
        pieces stay whole, and in padded batches of a small store much less. The same from any position, in any process.
        """
        first = copy.copy(self)
        first.rank, first.world_size, first._ahead = 0, 1, {}
        first.position = Position(len(self.store), 0, (Cursor(),) * self.order.num_streams)
        pieces = np.concatenate([chosen.pieces for chosen in first.choose(num_packs)])
        return (int(self.store.lengths(pieces).sum()) + self._framing * len(pieces)) / num_packs

    def take(self, num_packs: int) -> Iterator[B]:
        """The next `num_packs` batches of all processes; this one builds and yields its own."""
        return map(self.build, self.choose(num_packs))

    def _take(self, stream: int, cursor: Cursor) -> tuple[Waiting, Cursor]:
        def upcoming(count: int) -> Waiting:
            return self._upcoming(stream, cursor.drawn, count)

        taken, waiting = self.layout.choose(cursor.waiting, self.capacity, upcoming, self.patience)
        drawn = cursor.drawn + len(taken) + len(waiting) - len(cursor.waiting)
        return taken, Cursor(drawn, waiting)

    def _upcoming(self, stream: int, drawn: int, count: int) -> Waiting:
        """The pieces of a stream from serial `drawn` on."""
        ahead = self._ahead.get(stream, NOTHING)
        offset = drawn - int(ahead.serials[0]) if len(ahead) else 0
        if not 0 <= offset <= len(ahead):
            ahead, offset = NOTHING, 0
        if offset + count > len(ahead):
            start = drawn + len(ahead) - offset
            serials = np.arange(start, start + max(count, _DRAW_AHEAD))
            pieces, _ = self.order.serve(stream, serials)
            ahead = ahead[offset:] + Waiting(serials, pieces, self.store.lengths(pieces) + self._framing)
            self._ahead[stream], offset = ahead, 0
        return ahead[offset : offset + count]
