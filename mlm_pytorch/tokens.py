"""What every room needs to know about a vocabulary, and nothing about models or files.

`SpecialTokens` names the ids that mean something other than content: they are never selected, overwritten or drawn.
`WordTable` says from token ids alone where words begin (`masking.words` derives it from a tokenizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is not in the loss, as in `torch.nn.functional.cross_entropy`."""


def values_at_hand(x: Tensor) -> bool:
    """Whether the host may look at x's values: not while compiling, nor where a device would have to be waited for."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a vocabulary that stand for no content.

    num_tokens: size of the vocabulary; ids run from 0 to num_tokens - 1.
    ids: every special id, sorted, `mask_token_id` and `pad_token_id` among them.
    prefix, suffix: ids put before and after each piece, such as ([CLS],) and ([SEP],).

    >>> special = SpecialTokens(8, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))
    >>> special.drawable_ids().tolist()
    [1, 5, 6, 7]

    Raises ValueError where an id lies outside the vocabulary, or where a named id is missing from `ids`.
    """

    num_tokens: int
    mask_token_id: int
    pad_token_id: int
    ids: tuple[int, ...]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens {self.num_tokens} is not positive; pass the size of the vocabulary")
        for name in ("ids", "prefix", "suffix"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"ids {self.ids} must be sorted and without repeats; pass tuple(sorted(set(ids)))")
        outside = [i for i in self.ids if not 0 <= i < self.num_tokens]
        if outside:
            raise ValueError(
                f"special ids {outside} lie outside the vocabulary of {self.num_tokens}; "
                "raise num_tokens or drop these ids"
            )
        named = {
            "mask_token_id": (self.mask_token_id,),
            "pad_token_id": (self.pad_token_id,),
            "prefix": self.prefix,
            "suffix": self.suffix,
        }
        for name, ids in named.items():
            missing = sorted(set(ids) - set(self.ids))
            if missing:
                raise ValueError(f"{name} {missing} is not among the special ids {self.ids}; add it to ids")

    def is_special(self, device: torch.device | str | None = None) -> Tensor:
        """(num_tokens,) bool: True at special ids. `~special.is_special()[input_ids]` is what may be masked."""
        table = torch.zeros(self.num_tokens, dtype=torch.bool)
        table[list(self.ids)] = True
        return table.to(device)

    def content(self, ids: np.ndarray) -> np.ndarray:
        """A sequence of ids (L,) without padding at its ends, and without the prefix and suffix inside of it.

        Files of ids often hold rows padded to one length, framed by the tokenizer that made them. A store holds what
        they contain, and puts the frame around each piece itself.

        >>> special = SpecialTokens(8, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))
        >>> special.content(np.array([2, 5, 6, 3, 0, 0]))
        array([5, 6])
        """
        tokens = np.flatnonzero(ids != self.pad_token_id)
        ids = ids[tokens[0] : tokens[-1] + 1] if len(tokens) else ids[:0]
        before, after = len(self.prefix), len(self.suffix)
        if before and tuple(ids[:before].tolist()) == self.prefix:
            ids = ids[before:]
        if after and tuple(ids[-after:].tolist()) == self.suffix:
            ids = ids[:-after]
        return ids

    def drawable_ids(self, device: torch.device | str | None = None) -> Tensor:
        """(num_tokens - len(ids),) int64, sorted: what a random replacement may be."""
        return torch.nonzero(~self.is_special()).flatten().to(device)


# A fact is one int64 per token id; these are its fields' lowest bits.
_LEFT = 0  # 8 bits: class of the token's left end
_RIGHT = 8  # 8 bits: class of its right end, where it begins a word
_INNER = 16  # 8 bits: class of its right end, where it does not
_TWO_SIDED = 62  # these two classes differ
_PART = 24  # the token is a part of one character and nothing else: its right class is not known from it alone
_OPEN = 25  # it begins with such a part, the character's first: its left class is not known from it alone
_SHIFT = 26  # 3 bits: the number of continuation bytes that it begins with
_HEAD = 29  # 18 bits: the payload of these bytes
_TAIL = 47  # 15 bits: the payload of a last character that is not complete, one byte short at most
_LEFT_CLASS, _RIGHT_CLASS = 0xFF << _LEFT, 0xFF << _RIGHT
_RARE = 1 << _TWO_SIDED | 1 << _PART  # tokens after which one look at two neighbours is not enough
_NUM_CLASSES = 256
_BEFORE, _AFTER = 8, 3  # tokens on either side that can bear on whether a word begins: characters of four tokens

ALONE = 0  # class, at either end, of specials and added tokens: always words of their own
INSIDE = 1  # left class of tokens that never begin a word, except after an ALONE one


@dataclass(frozen=True, eq=False)
class WordTable:
    """Where words begin, from token ids alone: a class for each end of each token, and which pairs of classes part.

    A word is what the tokenizer's own pre-tokenizer cuts out (`word_ids()`). Whether a cut lies between two tokens
    depends on what the left one ends with and the right one begins with, so two classes per token and a small matrix
    decide it. Where it also matters whether the left token itself began a word (an apostrophe that opens "'s", and one
    that ends a run of punctuation), it has a second class for that. Characters that byte-level tokens cut apart are put
    together again from the ids and judged like any other.

    facts: (V,) int64, see above. parted: (256 * 256,) bool, at left token's right class * 256 + right token's left
    class. char_class: (N,) int64, the three classes of each code point, packed alike, for characters that lay across
    tokens; its last entry serves all code points above; empty where no token is a part of a character. two_sided:
    whether any token has two right classes.

    >>> words = WordTable.from_starts([True, True, False])    # ids 0 and 1 begin words, 2 continues one
    >>> words.starts_word(torch.tensor([1, 2, 2, 0])).tolist()
    [True, False, False, True]
    """

    facts: Tensor
    parted: Tensor
    char_class: Tensor
    two_sided: bool = False

    @classmethod
    def from_starts(cls, starts: Sequence[bool] | Tensor) -> WordTable:
        """For vocabularies whose ids say themselves whether they begin a word: `starts` (V,), True where they do."""
        flags = torch.as_tensor(starts, dtype=torch.bool)
        return cls.from_classes(
            right=torch.full_like(flags, 2, dtype=torch.int64),
            left=torch.where(flags, 2, INSIDE),
            parted=torch.ones(3, 3, dtype=torch.bool),
        )

    @classmethod
    def from_classes(
        cls,
        right: Tensor,
        left: Tensor,
        parted: Tensor,
        *,
        inner: Tensor | None = None,
        parts: Tensor | None = None,
        char_class: Tensor | None = None,
    ) -> WordTable:
        """From the classes at each token's ends, (V,) int64 each, ALONE and INSIDE as above, and parted (R, L) bool.

        inner: (V,) int64, the right classes of tokens that do not begin a word, where they differ from `right`.
        parts: (V,) int64, the remaining fields of the facts, made by `pack_part`. char_class: as in the class.

        Raises ValueError for more than 256 classes at one end.
        """
        if max(parted.shape) > _NUM_CLASSES:
            raise ValueError(f"parted {tuple(parted.shape)} exceeds {_NUM_CLASSES} classes; merge classes that agree")
        square = torch.zeros(_NUM_CLASSES, _NUM_CLASSES, dtype=torch.bool)
        square[: parted.shape[0], : parted.shape[1]] = parted
        square[:, INSIDE] = False
        square[ALONE, :] = square[:, ALONE] = True
        inner = right if inner is None else inner
        facts = (left << _LEFT) | (right << _RIGHT) | (inner << _INNER) | (0 if parts is None else parts)
        facts |= (inner != right).long() << _TWO_SIDED
        char_class = torch.empty(0, dtype=torch.int64) if char_class is None else char_class
        return cls(facts, square.flatten(), char_class, two_sided=bool((inner != right).any()))

    @staticmethod
    def pack_classes(left: int, right: int, inner: int) -> int:
        """What an entry of `char_class` holds."""
        return left << _LEFT | right << _RIGHT | inner << _INNER

    @staticmethod
    def pack_part(*, part: bool, opens: bool, head_bytes: int, head_bits: int, tail_bits: int) -> int:
        """What a fact says of the parts of characters that a token begins and ends with."""
        return part << _PART | opens << _OPEN | head_bytes << _SHIFT | head_bits << _HEAD | tail_bits << _TAIL

    @property
    def num_tokens(self) -> int:
        """V, the number of ids that the table knows."""
        return self.facts.numel()

    def to(self, device: torch.device | str) -> WordTable:
        """The same table on another device."""
        return WordTable(self.facts.to(device), self.parted.to(device), self.char_class.to(device), self.two_sided)

    def starts_word(self, input_ids: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        """Bool, of input_ids' shape: whether a word begins at each position. Documents always begin words.

        input_ids: int64, (B, L), or (T,) with `cu_seqlens` (D + 1,).

        Raises ValueError for ids outside the table (on CPU; elsewhere the device reports them) or on another device.
        """
        if input_ids.device != self.facts.device:
            raise ValueError(
                f"input_ids on {input_ids.device} meet a WordTable on {self.facts.device}; call words.to(device) once"
            )
        if values_at_hand(input_ids) and input_ids.numel():
            low, high = (int(i) for i in torch.aminmax(input_ids))
            if low < 0 or high >= self.num_tokens:
                raise ValueError(
                    f"ids {low}..{high} leave the WordTable's vocabulary of {self.num_tokens}; "
                    "derive it with a larger num_tokens, or from the tokenizer that made these ids"
                )
        first = _first_positions(input_ids, cu_seqlens)
        facts = _looked_up(self.facts, input_ids)
        # Few places need more than one look: these alone are gone into, unless finding them would stall a GPU.
        return self._starts_sparsely(facts, first) if values_at_hand(facts) else self._starts(facts, first)

    def _starts(self, facts: Tensor, first: Tensor) -> Tensor:
        margins = (_BEFORE, _AFTER)
        around = torch.nn.functional.pad(facts, margins), torch.nn.functional.pad(first, margins, value=True)
        return _starts_within(torch, self.parted, self.char_class, self.two_sided, *around)

    def _starts_sparsely(self, facts: Tensor, first: Tensor) -> Tensor:
        """`_starts`, by one look at every place, and more only about the places where one is not enough.

        These are few, and what they cost is mostly the number of calls: numpy's are several times cheaper.
        """
        starts = _looked_up(self.parted, (_previous(facts) & _RIGHT_CLASS) | (facts & _LEFT_CLASS)) | first
        flat, flat_first, result = facts.flatten().numpy(), first.flatten().numpy(), starts.view(-1).numpy()
        rare = np.flatnonzero(flat & _RARE)
        if not len(rare):
            return starts
        parted, char_class, last = self.parted.numpy(), self.char_class.numpy(), len(flat) - 1
        facts_of_rare = flat[rare]
        parts = rare[_flag(facts_of_rare, _PART)]
        if 3 * len(parts) * (_BEFORE + 1 + _AFTER) > len(flat):
            return self._starts(facts, first)
        if self.two_sided:  # tokens that do not begin words, of another right class then: what comes after them
            doubtful = _flag(facts_of_rare, _TWO_SIDED) & ~result[rare] & (rare < last)
            right, after = facts_of_rare[doubtful] >> (_INNER - _RIGHT), rare[doubtful] + 1
            result[after] = parted[(right & _RIGHT_CLASS) | (flat[after] & _LEFT_CLASS)] | flat_first[after]
        if len(parts):
            places = np.minimum(parts[:, None] + np.arange(3), last).reshape(-1, 1)
            around = places + np.arange(-_BEFORE, _AFTER + 1)
            outside = (around < 0) | (around > last)
            around = np.where(outside, 0, around)
            windows = np.where(outside, 0, flat[around]), flat_first[around] | outside
            result[places] = _starts_within(np, parted, char_class, self.two_sided, *windows)
        return starts


# --- the whole answer, written once for numpy and for torch: `xp` is one of them, and all arrays are its own ----------


def _starts_within(xp: Any, parted: Any, char_class: Any, two_sided: bool, facts: Any, first: Any) -> Any:
    """Whether a word begins, for all places along the last dimension but _BEFORE at its start and _AFTER at its end.

    Each look at a neighbour leaves one place less to answer for: slices say which places are meant.
    """
    part, opens = _flag(facts, _PART), _flag(facts, _OPEN)
    classes = facts[..., 3:-3]
    if len(char_class):
        classes = _join_characters(xp, char_class, facts, first, part, opens)

    def look(right: Any, left: Any, first: Any) -> Any:
        return xp.take(parted, (right[..., :-1] & _RIGHT_CLASS) | (left[..., 1:] & _LEFT_CLASS)) | first

    starts = look(classes, classes, first[..., 4:-3])
    if not two_sided:
        return starts[..., _BEFORE - 4 :]
    # A second look, now that it is known which tokens begin words. The parts of a character share its answer.
    follows = part & ~opens & ~first
    began = opening = starts & (opens | first)[..., 4:-3]
    for k in range(1, 4):
        began = xp.where(follows[..., 4 + k : -3], began[..., :-1], opening[..., k:])
    began = xp.where(follows[..., 7:-3], began, starts[..., 3:])
    classes = classes[..., 4:]
    return look(xp.where(began, classes, classes >> (_INNER - _RIGHT)), classes, first[..., _BEFORE:-3])


def _join_characters(xp: Any, char_class: Any, facts: Any, first: Any, part: Any, opens: Any) -> Any:
    """The classes in the facts, those of characters that lie across tokens taken from the whole character.

    A character has 4 bytes at most, so it lies across 4 tokens at most: three steps to the right carry its bits to
    the token that ends it, three steps to the left carry the sum back to the token that began it. For all places but
    three at either end.
    """
    shift, head, tail = ((facts >> _SHIFT) & 7) * 6, (facts >> _HEAD) & 0x3FFFF, (facts >> _TAIL) & 0x7FFF
    follows = part & ~opens
    ending = joined = tail  # code points so far, at each token's right end and where its head bytes end
    for k in range(1, 4):
        joined = (xp.where(first[..., k:], 0, ending[..., :-1]) << shift[..., k:]) | head[..., k:]
        ending = xp.where(follows[..., k:], joined, tail[..., k:])
    whole = joined
    goes_on = (shift[..., 4:] > 0) & ~first[..., 4:] & part[..., 3:-1]
    for _ in range(3):
        whole = whole[..., 1:]
        whole = xp.where(goes_on[..., : whole.shape[-1]], whole, joined[..., : whole.shape[-1]])
    last, inner = len(char_class) - 1, facts[..., 3:-3]
    of_ended, of_whole = (xp.take(char_class, xp.clip(x, 0, last)) for x in (joined[..., :-3], whole))
    right = xp.where(part[..., 3:-3], of_ended, inner) & ~_LEFT_CLASS
    left = xp.where(opens[..., 3:-3], of_whole, inner) & _LEFT_CLASS
    return right | left


def _flag(facts: Any, bit: int) -> Any:
    return (facts & (1 << bit)) != 0


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, by the call that is fastest on CPU."""
    return table.index_select(0, index.flatten()).view_as(index)


def _first_positions(input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Bool, of input_ids' shape: the first position of each document."""
    if cu_seqlens is None:
        first = torch.zeros_like(input_ids, dtype=torch.bool)
        first[..., :1] = True
        return first
    # one place more than tokens: there the empty documents at the end begin
    first = torch.zeros(input_ids.numel() + 1, dtype=torch.bool, device=input_ids.device)
    first.index_fill_(0, cu_seqlens[:-1].long(), True)
    return first[:-1]


def _previous(x: Tensor) -> Tensor:
    """Each position's left neighbour along the last dimension; the first its own, for callers to set aside."""
    return torch.cat([x[..., :1], x[..., :-1]], dim=-1)
