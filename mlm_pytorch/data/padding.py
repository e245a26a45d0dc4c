"""Pieces to padded batches: (B, L) ids, a piece per row, for transformers that take no flat packs.

Shapes: B rows, L width, T the budget in tokens (B * L <= T).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from mlm_pytorch.data.packing import Pack, Pieces, Upcoming, Waiting, build_pack

_MULTIPLE = 8  # of every width; what attention kernels want of a mask's rows
_CHUNK = 128  # pieces looked at in one go


@dataclass(frozen=True)
class PaddedBatch:
    """Whole pieces in rows, each framed by the tokenizer's special tokens, longest first, padded at the end.

    Attributes:
        input_ids: (B, L) int64.
        lengths: (B,) int64, the framed length of each row's piece.
        pieces: (B,) int64 index in the store of each row's piece.
        visits: (B,) int64, how often the piece had been served before.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    pieces: np.ndarray
    visits: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces, padding not counted."""
        return int(self.lengths.sum())

    @property
    def attention_mask(self) -> np.ndarray:
        """(B, L) bool: True at tokens of pieces, False at padding."""
        return np.arange(self.input_ids.shape[1]) < self.lengths[:, None]

    def flat(self) -> Pack:
        """The same pieces as a pack of their own size: what masking takes (`objective.padded.mask_padded`)."""
        return Pack(self.input_ids[self.attention_mask], self.lengths, self.pieces, self.visits)


@cache
def widths(capacity: int) -> np.ndarray:
    """The widths that batches may have, rising to `capacity`: multiples of 8, at most 9 for each doubling.

    So few that compiled or recorded kernels can be kept for each: 24 up to 256, 40 up to 1,024, 64 up to 8,192.

    Example:
        >>> widths(200).tolist()
        [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 144, 160, 176, 192, 200]
    """
    found = []
    width = _MULTIPLE
    while width < capacity:
        found.append(width)
        width += max(_MULTIPLE, 1 << (width.bit_length() - 4))
    return np.array([*found, capacity])


def take_rows(waiting: Waiting, capacity: int, upcoming: Upcoming, patience: int) -> tuple[Waiting, Waiting]:
    """Choose the pieces of the next padded batch: returns those taken, and those that then wait.

    A piece waits with others that take the same of the `widths`. Pieces are drawn until those of some width L make
    capacity // L rows, which are the batch. A piece that has waited for `patience` draws is served next, whatever
    the size of its group, with shorter pieces, the longest of them, where rows are missing.

    So no piece is overtaken by more than `patience` others of its stream; and a group that waits is always short of a
    batch, which bounds the queue by `capacity` tokens per width.

    Args:
        waiting: the queue, as this function left it.
        capacity: T. No piece may be longer.
        upcoming: what comes after the queue.
        patience: at least 1.

    Example:
        >>> def upcoming(n): return Waiting(np.arange(n), np.arange(n), np.resize([7, 30, 5, 31], n))
        >>> taken, left = take_rows(upcoming(0), 64, upcoming, patience=100)
        >>> taken.lengths.tolist(), left.lengths.tolist()
        ([30, 31], [7, 5])
    """
    table = widths(capacity)
    rows = capacity // table
    room = rows - np.bincount(np.searchsorted(table, waiting.lengths), minlength=len(table))
    oldest = int(waiting.serials[0]) if len(waiting) else int(upcoming(1).serials[0])
    count = _CHUNK
    while True:
        ahead = upcoming(count)
        patient = min(count, oldest + patience - int(ahead.serials[0]))  # draws until the oldest must be served
        ahead = ahead[:patient]
        group = np.searchsorted(table, ahead.lengths)
        by_group = np.argsort(group, kind="stable")
        rank = np.empty_like(by_group)
        rank[by_group] = np.arange(len(group)) - np.searchsorted(group[by_group], group[by_group])
        complete = np.flatnonzero(rank + 1 >= room[group])
        if len(complete):
            ahead = ahead[: complete[0] + 1]
            chosen = int(group[complete[0]])
            break
        if patient < count:
            chosen = -1
            break
        count *= 2
    queue = waiting + ahead
    group = np.searchsorted(table, queue.lengths)
    if chosen < 0:
        chosen = int(group[0])
    taken = group == chosen
    missing = int(rows[chosen] - taken.sum())
    if missing:
        shorter = np.flatnonzero(group < chosen)
        taken[shorter[np.argsort(-queue.lengths[shorter], kind="stable")[:missing]]] = True
    return queue[taken], queue[~taken]


def build_padded(store: Pieces, pieces: np.ndarray, visits: np.ndarray, capacity: int) -> PaddedBatch:
    """Put pieces into rows, longest first, of the width that the longest takes."""
    pack = build_pack(store, pieces, visits)
    table = widths(capacity)
    width = int(table[np.searchsorted(table, pack.lengths[0])])
    input_ids = np.full((len(pieces), width), store.special.pad_token_id, dtype=np.int64)
    input_ids[np.arange(width) < pack.lengths[:, None]] = pack.input_ids
    return PaddedBatch(input_ids, pack.lengths, pack.pieces, pack.visits)
