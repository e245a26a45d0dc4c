"""How a step's batches are dealt to forwards: several at a time where memory allows, parts of one where it must.

What a step learns from is fixed by the configuration: its batches, their pieces and their masks. How many of them one
forward takes changes neither the sum of the losses nor the gradient, up to rounding, since attention, masks and losses
belong to pieces. So it may be chosen by the memory there is, and changed in the middle of a run.

Shapes: T tokens of a pack, D segments in it, B rows, L width, K selected positions.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mlm_pytorch.objective.packs import MaskedPack
from mlm_pytorch.objective.padded import MaskedRows

_ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "out of memory")  # torch's CPU and MPS allocators


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(RuntimeError("bad shape"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ALLOCATION_FAILED)


def join_packs(packs: Sequence[MaskedPack]) -> MaskedPack:
    """Several packs as one, end to end: the segments, masks and targets are those of the packs one by one."""
    if len(packs) == 1:
        return packs[0]
    borders, positions, start = [packs[0].cu_seqlens[:1]], [], 0
    for pack in packs:
        borders.append(pack.cu_seqlens[1:] + start)
        positions.append(pack.positions + start)
        start += len(pack.input_ids)
    return MaskedPack(
        torch.cat([pack.input_ids for pack in packs]),
        torch.cat(borders),
        max(pack.max_seqlen for pack in packs),
        torch.cat(positions),
        torch.cat([pack.labels for pack in packs]),
        sum(pack.num_tokens for pack in packs),
    )


def halve_pack(pack: MaskedPack) -> tuple[MaskedPack, MaskedPack]:
    """A pack in two, between two segments, as near to the middle as that goes. Padding lies at its end.

    Raises:
        ValueError: a pack of one segment.
    """
    borders = pack.cu_seqlens.tolist()
    if len(borders) < 3:
        raise ValueError(f"a pack of one piece of {borders[-1]:,} tokens cannot be cut; lower --seq-len")
    middle = min(range(1, len(borders) - 1), key=lambda i: abs(2 * borders[i] - borders[-1]))
    cut = borders[middle]
    is_left = pack.positions < cut
    left_tokens = min(cut, pack.num_tokens)
    longest = [max(b - a for a, b in itertools.pairwise(part)) for part in (borders[: middle + 1], borders[middle:])]
    left = MaskedPack(
        pack.input_ids[:cut],
        pack.cu_seqlens[: middle + 1],
        longest[0],
        pack.positions[is_left],
        pack.labels[is_left],
        left_tokens,
    )
    right = MaskedPack(
        pack.input_ids[cut:],
        pack.cu_seqlens[middle:] - cut,
        longest[1],
        pack.positions[~is_left] - cut,
        pack.labels[~is_left],
        pack.num_tokens - left_tokens,
    )
    return left, right


def halve_rows(rows: MaskedRows) -> tuple[MaskedRows, MaskedRows]:
    """A padded batch in two, between two rows; each half as wide as its longest piece.

    Raises:
        ValueError: a batch of one row.
    """
    num_rows, width = rows.input_ids.shape
    if num_rows < 2:
        raise ValueError(f"a batch of one piece of {width:,} tokens cannot be cut; lower --seq-len")
    middle = num_rows // 2
    halves = []
    for start, end in ((0, middle), (middle, num_rows)):
        mask = rows.attention_mask[start:end]
        longest = int(mask.sum(1).max())
        row, column = rows.positions // width, rows.positions % width
        here = (row >= start) & (row < end)
        halves.append(
            MaskedRows(
                rows.input_ids[start:end, :longest],
                mask[:, :longest],
                (row[here] - start) * longest + column[here],
                rows.labels[here],
                int(mask.sum()),
            )
        )
    return halves[0], halves[1]


def halve(batch: Any) -> tuple[Any, Any]:
    """A pack or a padded batch in two, between pieces. Raises ValueError where it holds one piece only."""
    return halve_rows(batch) if isinstance(batch, MaskedRows) else halve_pack(batch)


class MicroBatches:
    """Deals the batches of a step to forwards.

    Args:
        together: packs that one forward takes. Padded batches, of different widths, always go one at a time.
        notice: told when fewer must do.

    Attributes:
        halvings: how often each batch is cut in two, where one forward cannot take a whole one.

    Example:
        >>> MicroBatches(2).sizes(8)
        '2 at a time, 4 forwards a step'
    """

    def __init__(self, together: int = 1, notice: Callable[[str], None] = lambda _: None):
        self.together, self.halvings, self.notice = together, 0, notice

    def deal(self, batches: Sequence[Any]) -> list[Any]:
        """What each forward takes. Parts without a target are left out, unless nothing else is there."""
        if self.halvings:
            parts = list(batches)
            for _ in range(self.halvings):
                parts = [half for part in parts for half in (halve(part) if _can_be_halved(part) else (part,))]
            return [part for part in parts if part.num_targets] or parts[:1]
        if self.together == 1 or not all(isinstance(batch, MaskedPack) for batch in batches):
            return list(batches)
        groups = [batches[i : i + self.together] for i in range(0, len(batches), self.together)]
        return [join_packs(group) for group in groups]

    def shrink(self, batches: Sequence[Any]) -> None:
        """Deal less to each forward from here on, since the memory did not hold what it took.

        Raises:
            ValueError: it took a single piece.
        """
        before = self.deal(batches)
        together = min(self.together, len(batches)) if len(before) < len(batches) else 1
        if together > 1:
            self.together = together // 2
        else:
            self.together = 1
            if not any(_can_be_halved(part) for part in before):
                longest = max(_size(part) for part in before)
                raise ValueError(
                    f"out of memory: a single piece of {longest:,} tokens does not fit beside the model; lower "
                    "--seq-len, or choose a smaller --model or a device with more memory"
                )
            self.halvings += 1
        self.notice(f"out of memory: going on with {self.sizes(len(batches))}, on the same batch and data")

    def sizes(self, num_batches: int) -> str:
        """In words, for a step of `num_batches`."""
        if self.halvings:
            return f"each cut into {2**self.halvings} parts, {num_batches * 2**self.halvings} forwards a step"
        together = min(self.together, num_batches)
        forwards = -(-num_batches // together)
        return f"{together} at a time, {forwards} forward{'s' * (forwards > 1)} a step"


def _can_be_halved(batch: Any) -> bool:
    return (len(batch.input_ids) if isinstance(batch, MaskedRows) else len(batch.cu_seqlens) - 1) > 1


def _size(batch: Any) -> int:
    return batch.input_ids.numel()
