"""The order in which training reads a store: computed, never stored, so that resuming costs nothing.

The pieces of all epochs form one endless sequence: visit v walks a pseudo-random permutation of the store, keyed by
(seed, v). The sequence is dealt to G virtual streams in blocks of about a pack's worth, like cards dealt several at a
time.
"""

from dataclasses import dataclass

import numpy as np

NUM_STREAMS = 16
_ROUNDS = 8
_MIN_BITS = 6  # fewer leave too little room for the rounds to mix: orders of two to six pieces were not equally likely
_MASK64 = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix64(x: np.ndarray) -> np.ndarray:
    """The splitmix64 generator's next output after each state (Steele et al. 2014), uint64."""
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Where a keyed pseudo-random permutation of range(size) puts each index, (n,) int64.

    Rounds of adding, multiplying by an odd number and folding the high bits down are each invertible on b-bit numbers,
    where 2^b is the power of two at or above `size`; an index that lands beyond `size` is sent through again until it
    does not (cycle walking, Black and Rogaway 2002), two passes at most on average but for the smallest sizes. O(1)
    memory at any size.

    Args:
        index: (n,) integers in range(size).
        size: how many are permuted.
        key: one for all, or (n,) uint64, one for each index.

    Example:
        >>> sorted(permute(np.arange(10), 10, key=1).tolist()) == list(range(10))
        True
    """
    keys = np.array([key & _MASK64], dtype=np.uint64) if isinstance(key, int) else key
    keys, which = np.unique(keys, return_inverse=True)
    bits = max(_MIN_BITS, (size - 1).bit_length())
    mask, fold = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    # Of the rounds in turn: what to add, what to multiply by. (2 * rounds, number of keys)
    table = _mix64(keys + _STEP * np.arange(2 * _ROUNDS, dtype=np.uint64)[:, None])
    table[1::2] |= np.uint64(1)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        x = result[todo]  # a copy
        rounds = table[:, which[todo]] if len(keys) > 1 else table
        for add, multiply in zip(rounds[::2], rounds[1::2], strict=True):
            x += add
            x *= multiply
            x &= mask
            x ^= x >> fold
        result[todo] = x
        todo = todo[x >= size]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """Which piece comes when. Stateless: any part of it is computed from its number alone.

    Number g of the endless sequence belongs to stream (g // block) mod G. Where a block is a pack's worth, pack after
    pack takes the sequence about in its order, so that a store of a few packs, too, is read through before it is read
    again.

    Attributes:
        num_pieces: pieces in the store.
        seed: another seed, another order.
        num_streams: G, fixed for a run.
        block: consecutive numbers that go to one stream.
    """

    num_pieces: int
    seed: int
    num_streams: int = NUM_STREAMS
    block: int = 1

    def serve(self, stream: int, serials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces, and how often each was served before, for serials (n,) of a stream: two of (n,) int64.

        Example:
            >>> pieces, visits = Order(num_pieces=3, seed=0, num_streams=1).serve(0, np.arange(6))
            >>> sorted(pieces[:3].tolist()), sorted(pieces[3:].tolist()), visits.tolist()
            ([0, 1, 2], [0, 1, 2], [0, 0, 0, 1, 1, 1])
        """
        visits, offsets = self._place(stream, serials)
        seed = np.uint64(self.seed & _MASK64)
        keys = _mix64(seed ^ _mix64(visits.astype(np.uint64)))
        return permute(offsets, self.num_pieces, keys), visits

    def visits(self, stream: int, serials: np.ndarray) -> np.ndarray:
        """The second half of `serve`, (n,) int64, which takes no permuting."""
        return self._place(stream, serials)[0]

    def _place(self, stream: int, serials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Visits, and places in their permutations."""
        rounds, within = np.divmod(np.asarray(serials, dtype=np.int64), self.block)
        return np.divmod((rounds * self.num_streams + stream) * self.block + within, self.num_pieces)
