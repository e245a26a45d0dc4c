"""The order in which training reads a store: computed, never stored, so that resuming costs nothing.

The pieces of all epochs form one endless sequence: epoch e walks a pseudo-random permutation of the store, keyed by
(seed, e). The sequence is dealt to G virtual streams, number g to stream g mod G, and each stream packs its own packs.
Pack k comes from stream k mod G, whatever the number of processes: a rank reads the streams s with s mod world_size =
rank. What must be remembered is, per stream, how far it has drawn and which pieces wait for a place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlm_pytorch.data.packing import Pack, Pieces, Waiting, build_pack, take_pack

NUM_STREAMS = 16
_DRAW_AHEAD = 256  # serials whose order is computed in one go
_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def _mix64(x: int) -> int:
    """One step of the splitmix64 generator's output function (Steele et al. 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed pseudo-random permutation of range(size) puts each index.

    Rounds of adding, multiplying by an odd number and folding the high bits down are each invertible on b-bit numbers,
    where 2^b is the power of two at or above `size`; an index that lands beyond `size` is sent through again until it
    does not (cycle walking, Black and Rogaway 2002), two passes at most on average. O(1) memory at any size.

    Example:
        >>> sorted(permute(np.arange(10), 10, key=1).tolist()) == list(range(10))
        True
    """
    bits = max(2, (size - 1).bit_length())
    mask = np.uint64((1 << bits) - 1)
    fold = np.uint64((bits + 1) // 2)
    constants = []
    state = key & _MASK64
    for _ in range(2 * _ROUNDS):
        state = _mix64(state)
        constants.append(np.uint64(state))
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        x = result[todo]
        for add, multiply in zip(constants[::2], constants[1::2], strict=True):
            x = ((x + add) * (multiply | np.uint64(1))) & mask
            x ^= x >> fold
        result[todo] = x
        todo = todo[x >= size]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """Which piece comes when. Stateless: any part of it is computed from its number alone.

    Attributes:
        num_pieces: pieces in the store.
        seed: another seed, another order.
        num_streams: G, fixed for a run.
    """

    num_pieces: int
    seed: int
    num_streams: int = NUM_STREAMS

    def serve(self, stream: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces and visits of the serials start … start + count - 1 of a stream, each (count,) int64."""
        sequence = stream + self.num_streams * np.arange(start, start + count, dtype=np.int64)
        visits, offsets = np.divmod(sequence, self.num_pieces)
        pieces = np.empty_like(offsets)
        for visit in np.unique(visits).tolist():
            here = visits == visit
            pieces[here] = permute(offsets[here], self.num_pieces, key=_mix64(self.seed ^ _mix64(visit)))
        return pieces, visits


def count_tokens(store: Pieces, max_pieces: int = 8192) -> np.ndarray:
    """How often each token occurs (num_tokens,) int64 in up to `max_pieces` pieces spread evenly over a store."""
    chosen = np.linspace(0, len(store) - 1, min(max_pieces, len(store))).astype(np.int64)
    counts = np.zeros(store.special.num_tokens, dtype=np.int64)
    for index in chosen.tolist():
        np.add.at(counts, store.piece(index), 1)
    return counts


@dataclass(frozen=True)
class Cursor:
    """How far a stream has come: serials drawn so far, and those drawn that still wait, oldest first."""

    drawn: int = 0
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where a reader stands: the next pack's number and every stream's cursor. Plain data, saved as JSON."""

    next_pack: int
    cursors: tuple[Cursor, ...]

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists; lengths are left out, since the store knows them."""
        return {
            "next_pack": self.next_pack,
            "drawn": [cursor.drawn for cursor in self.cursors],
            "waiting": [[w.serial for w in cursor.waiting] for cursor in self.cursors],
        }


class Reader:
    """Packs in training order, for one of `world_size` processes.

    Args:
        store: what to read.
        capacity: T, the tokens of a pack.
        seed: of the order.
        num_streams: G; the same for a run's whole life.
        rank, world_size: this process, and how many there are; G must be a multiple of `world_size`.

    Raises:
        ValueError: an empty store, a capacity below the store's longest piece, or streams that cannot be dealt.
    """

    def __init__(
        self,
        store: Pieces,
        capacity: int,
        *,
        seed: int,
        longest: int,
        num_streams: int = NUM_STREAMS,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(store) == 0:
            raise ValueError("the store holds no pieces; there is nothing to train on")
        if longest > capacity:
            raise ValueError(
                f"a pack of {capacity} tokens cannot hold a piece of {longest}; raise --pack-tokens or lower --seq-len"
            )
        if num_streams % world_size:
            fits = ", ".join(str(n) for n in range(1, num_streams + 1) if num_streams % n == 0)
            raise ValueError(f"{num_streams} streams cannot be dealt to {world_size} processes; use one of {fits}")
        self.store, self.capacity = store, capacity
        self.order = Order(len(store), seed, num_streams)
        self.rank, self.world_size = rank, world_size
        self.position = Position(0, (Cursor(),) * num_streams)
        self._framing = len(store.special.prefix) + len(store.special.suffix)
        self._ahead: dict[int, tuple[int, list[Waiting]]] = {}  # a cache: nothing in it is state

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue where `Position.to_json` was taken; costs the same after any number of packs.

        Raises:
            ValueError: a position saved with another number of streams.
        """
        if len(saved["drawn"]) != self.order.num_streams:
            raise ValueError(
                f"the saved position has {len(saved['drawn'])} streams, this run {self.order.num_streams}; "
                "keep them equal"
            )
        cursors = []
        for stream, (drawn, serials) in enumerate(zip(saved["drawn"], saved["waiting"], strict=True)):
            pieces = np.array([self.order.serve(stream, serial, 1)[0][0] for serial in serials], dtype=np.int64)
            lengths = (self.store.lengths(pieces) + self._framing).tolist() if serials else []
            cursors.append(Cursor(drawn, tuple(Waiting(s, n) for s, n in zip(serials, lengths, strict=True))))
        self.position = Position(saved["next_pack"], tuple(cursors))

    def _draw(self, stream: int, serial: int) -> Waiting:
        start, chunk = self._ahead.get(stream, (0, []))
        if not start <= serial < start + len(chunk):
            start = serial
            pieces, _ = self.order.serve(stream, start, _DRAW_AHEAD)
            lengths = (self.store.lengths(pieces) + self._framing).tolist()
            chunk = [Waiting(start + i, length) for i, length in enumerate(lengths)]
            self._ahead[stream] = (start, chunk)
        return chunk[serial - start]

    def _next_pack(self, stream: int) -> Pack:
        cursor = self.position.cursors[stream]
        drawn, waiting = cursor.drawn, list(cursor.waiting)

        def draw() -> Waiting:
            nonlocal drawn
            drawn += 1
            return self._draw(stream, drawn - 1)

        taken = take_pack(waiting, self.capacity, draw)
        cursors = list(self.position.cursors)
        cursors[stream] = Cursor(drawn, tuple(waiting))
        self.position = Position(self.position.next_pack, tuple(cursors))
        serials = np.array([w.serial for w in taken], dtype=np.int64)
        low, high = int(serials.min()), int(serials.max())
        pieces, visits = self.order.serve(stream, low, high - low + 1)
        return build_pack(self.store, pieces[serials - low], visits[serials - low], self.capacity)

    def take(self, num_packs: int) -> Iterator[Pack]:
        """The next `num_packs` packs of all processes; this one builds and yields those of its own streams."""
        first = self.position.next_pack
        for number in range(first, first + num_packs):
            stream = number % self.order.num_streams
            if stream % self.world_size == self.rank:
                pack = self._next_pack(stream)
                self.position = Position(number + 1, self.position.cursors)
                yield pack
            else:
                self.position = Position(number + 1, self.position.cursors)
