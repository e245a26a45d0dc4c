"""Pieces to packs: T tokens of whole pieces, filled to the brim, no piece cut and none joined to another.

Shapes: T tokens of a pack, D pieces in it (the padding at its end counts as one more, where there is any).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlm_pytorch.tokens import SpecialTokens

LOOKAHEAD = 64  # pieces that wait for a place; enough to fill more than 99.8% of a pack of text


class Pieces(Protocol):
    """What packing and reading need of a store."""

    special: SpecialTokens

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces, without framing."""
        ...

    def __len__(self) -> int: ...
    def piece(self, index: int) -> np.ndarray:
        """Token ids of a piece, without framing."""
        ...

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces, without framing."""
        ...


@dataclass(frozen=True, eq=False)
class Waiting:
    """Pieces that wait for a place, or come next: (n,) int64 each, oldest first.

    Attributes:
        serials: the pieces' places in their stream's order.
        pieces: their indices in the store.
        lengths: in tokens, framing counted.
    """

    serials: np.ndarray
    pieces: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.serials)

    def __getitem__(self, index: slice | np.ndarray) -> "Waiting":
        return Waiting(self.serials[index], self.pieces[index], self.lengths[index])

    def __add__(self, other: "Waiting") -> "Waiting":
        return Waiting(
            np.concatenate((self.serials, other.serials)),
            np.concatenate((self.pieces, other.pieces)),
            np.concatenate((self.lengths, other.lengths)),
        )


NOTHING = Waiting(*(np.empty(0, np.int64) for _ in range(3)))

Upcoming = Callable[[int], Waiting]
"""Looks at the next n pieces of a stream without drawing them."""


@dataclass(frozen=True)
class Pack:
    """T tokens of whole pieces, each framed by the tokenizer's special tokens, longest first.

    Attributes:
        input_ids: (T,) int64; padding at the end is a segment of its own.
        lengths: (D,) int64, the framed length of each segment, padding included; sums to T.
        pieces: (D,) int64 index in the store of each segment's piece, -1 for padding.
        visits: (D,) int64, how often the piece had been served before.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    pieces: np.ndarray
    visits: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces, padding not counted."""
        return int(self.lengths[self.pieces >= 0].sum())

    @property
    def cu_seqlens(self) -> np.ndarray:
        """Borders of the segments (D + 1,) int64, from 0 to T."""
        return np.concatenate(([0], self.lengths.cumsum()))

    @property
    def positions(self) -> np.ndarray:
        """Positions (T,) int64 that restart at 0 with each segment."""
        return np.arange(len(self.input_ids)) - np.repeat(self.cu_seqlens[:-1], self.lengths)


def take_pack(waiting: Waiting, capacity: int, upcoming: Upcoming) -> tuple[Waiting, Waiting]:
    """Choose the pieces of the next pack: returns those taken, and those that then wait, drawn ones among them.

    Oldest first while the oldest fits; what room is then left takes the largest of the next `LOOKAHEAD` pieces that
    fits, and again, until none does. The oldest always opens the next pack, so a piece waits for at most as many packs
    as there are pieces before it in the queue.

    Args:
        waiting: the queue, at most `LOOKAHEAD` pieces.
        capacity: T. No piece may be longer.
        upcoming: what comes after the queue.

    Example:
        >>> def upcoming(n): return Waiting(np.arange(4, 4 + n), np.arange(4, 4 + n), np.full(n, 7))
        >>> queue = Waiting(np.arange(4), np.arange(4), np.array([6, 5, 2, 3]))
        >>> taken, left = take_pack(queue, 10, upcoming)
        >>> taken.lengths.tolist(), left.lengths.tolist()[:3], len(left)
        ([6, 3], [5, 2, 7], 63)
    """
    queue = waiting
    while True:
        fit = int(np.searchsorted(queue.lengths.cumsum(), capacity, side="right"))
        missing = fit + LOOKAHEAD - len(queue)
        if missing <= 0:
            break
        queue = waiting + upcoming(len(queue) - len(waiting) + missing)
    assert fit, "a piece is longer than a pack"
    taken = np.zeros(len(queue), dtype=bool)
    taken[:fit] = True
    room = capacity - int(queue.lengths[:fit].sum())
    candidates = queue.lengths[fit:].copy()
    while room:
        fitting = np.where(candidates <= room, candidates, 0)
        best = int(fitting.argmax())  # the oldest of the largest
        if not fitting[best]:
            break
        taken[fit + best] = True
        room -= int(candidates[best])
        candidates[best] = capacity + 1
    return queue[taken], queue[~taken]


def build_pack(store: Pieces, pieces: np.ndarray, visits: np.ndarray, capacity: int | None = None) -> Pack:
    """Lay pieces end to end, longest first, and fill the rest of `capacity` with padding; None leaves no rest.

    Like lengths lie side by side, so that attention takes them as one block.
    """
    special = store.special
    prefix, suffix = len(special.prefix), len(special.suffix)
    tokens = [store.piece(index) for index in pieces.tolist()]
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens)) + (prefix + suffix)
    order = np.argsort(-lengths, kind="stable")
    pieces, visits, lengths = pieces[order], visits[order], lengths[order]
    ends = lengths.cumsum()
    used = int(ends[-1])
    capacity = used if capacity is None else capacity
    input_ids = np.full(capacity, special.pad_token_id, dtype=np.int64)
    framing = np.zeros(used, dtype=bool)
    for i, token in enumerate(special.prefix):
        where = ends - lengths + i
        input_ids[where], framing[where] = token, True
    for i, token in enumerate(special.suffix):
        where = ends - suffix + i
        input_ids[where], framing[where] = token, True
    input_ids[:used][~framing] = np.concatenate([tokens[i] for i in order.tolist()])
    if used < capacity:
        lengths = np.append(lengths, capacity - used)
        pieces, visits = np.append(pieces, -1), np.append(visits, 0)
    return Pack(input_ids, lengths, pieces, visits)


def join_packs(packs: Sequence[Pack]) -> Pack:
    """Several packs end to end as one, for a device that takes more than one at a time: (m T,) tokens.

    Masks and losses are those of the packs one by one, since both belong to pieces.
    """
    input_ids, lengths, pieces, visits = (
        np.concatenate([getattr(pack, name) for pack in packs]) for name in ("input_ids", "lengths", "pieces", "visits")
    )
    return Pack(input_ids, lengths, pieces, visits)


def sequential_packs(store: Pieces, capacity: int, max_pieces: int | None = None) -> Iterator[Pack]:
    """Every piece of a store once, in storage order, in packs: for evaluation.

    Only the first `max_pieces` where that is given. The last pack is as short as its pieces.
    """
    framing = len(store.special.prefix) + len(store.special.suffix)
    count = len(store) if max_pieces is None else min(max_pieces, len(store))
    held: list[int] = []
    room = capacity
    for start in range(0, count, 4096):
        indices = np.arange(start, min(start + 4096, count))
        for index, length in zip(indices.tolist(), (store.lengths(indices) + framing).tolist(), strict=True):
            if length > room:
                yield build_pack(store, np.array(held), np.zeros(len(held), np.int64), capacity)
                held, room = [], capacity
            held.append(index)
            room -= length
    if held:
        yield build_pack(store, np.array(held), np.zeros(len(held), np.int64))
