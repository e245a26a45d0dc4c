"""Pieces to packs: T tokens of whole pieces, filled to the brim, no piece cut and none joined to another.

Shapes: T tokens of a pack, D pieces in it (the padding at its end counts as one more, where there is any).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlm_pytorch.tokens import SpecialTokens

LOOKAHEAD = 64  # pieces that wait for a place; enough to fill more than 99.8% of a pack of text


class Pieces(Protocol):
    """What packing needs of a store."""

    special: SpecialTokens

    def __len__(self) -> int: ...
    def piece(self, index: int) -> np.ndarray:
        """Token ids of a piece, without framing."""
        ...

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces, without framing."""
        ...


@dataclass(frozen=True)
class Waiting:
    """A piece that waits for a place: `serial` is its place in the stream's order, `length` counts its framing."""

    serial: int
    length: int


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


def take_pack(waiting: list[Waiting], capacity: int, draw: Callable[[], Waiting]) -> list[Waiting]:
    """Choose the pieces of the next pack and take them out of `waiting`, which `draw` keeps topped up.

    Oldest first while the oldest fits; what room is then left takes the largest waiting piece that fits, and again,
    until none does. The oldest piece always opens the next pack, so none waits for longer than one pack.

    Args:
        waiting: the queue, oldest first; changed in place.
        capacity: T. No piece may be longer.
        draw: gives the stream's next piece.

    Example:
        >>> queue = [Waiting(i, n) for i, n in enumerate([6, 5, 2, 3])]
        >>> [w.length for w in take_pack(queue, 10, iter([Waiting(9, 7)] * 99).__next__)]
        [6, 3]
    """
    taken: list[Waiting] = []
    room = capacity
    while True:
        while len(waiting) < LOOKAHEAD:
            waiting.append(draw())
        if waiting[0].length > room:
            break
        taken.append(waiting.pop(0))
        room -= taken[-1].length
    assert taken, "a piece is longer than a pack"
    while room:
        best = -1
        for i, candidate in enumerate(waiting):
            if candidate.length <= room and (best < 0 or candidate.length > waiting[best].length):
                best = i
        if best < 0:
            break
        taken.append(waiting.pop(best))
        room -= taken[-1].length
    return taken


def build_pack(store: Pieces, pieces: np.ndarray, visits: np.ndarray, capacity: int) -> Pack:
    """Lay pieces end to end, longest first, and fill the rest of `capacity` with padding.

    Like lengths lie side by side, so that attention takes them as one block.
    """
    special = store.special
    order = np.argsort(-store.lengths(pieces), kind="stable")
    pieces, visits = pieces[order], visits[order]
    prefix, suffix = len(special.prefix), len(special.suffix)
    input_ids = np.full(capacity, special.pad_token_id, dtype=np.int64)
    lengths = np.empty(len(pieces), dtype=np.int64)
    start = 0
    for i, index in enumerate(pieces.tolist()):
        tokens = store.piece(index)
        end = start + prefix + len(tokens)
        input_ids[start : start + prefix] = special.prefix
        input_ids[start + prefix : end] = tokens
        input_ids[end : end + suffix] = special.suffix
        lengths[i] = end + suffix - start
        start = end + suffix
    if start < capacity:
        lengths = np.append(lengths, capacity - start)
        pieces, visits = np.append(pieces, -1), np.append(visits, 0)
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
        yield build_pack(store, np.array(held), np.zeros(len(held), np.int64), capacity - room)
