"""Masking and loss for a flat pack: what training and evaluation both run.

Shapes: T tokens of a pack, D segments in it, K selected positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.masking import OF_WORDS, SELECTIONS, corrupt, flat_scores, select_balanced
from mlm_pytorch.objective.head import Head, logits_at, takes_positions
from mlm_pytorch.objective.loss import cross_entropy_with_hits
from mlm_pytorch.tokens import IGNORE_INDEX, SpecialTokens, WordTable

BALANCED = "balanced"
# Each new number of rows costs a matrix product's code anew, which for small models takes longer than the product.
TARGETS_STEP = 16


class Pack(Protocol):
    """Whole pieces laid end to end, as `mlm_pytorch.data` builds them."""

    @property
    def input_ids(self) -> np.ndarray:
        """(T,) int64."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """(D,) int64; sums to T."""
        ...

    @property
    def pieces(self) -> np.ndarray:
        """(D,) int64, the piece in each segment; -1 for padding."""
        ...

    @property
    def visits(self) -> np.ndarray:
        """(D,) int64, how often that piece was served before."""
        ...

    @property
    def cu_seqlens(self) -> np.ndarray:
        """(D + 1,) int64 borders of the segments."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces, padding not counted."""
        ...


@dataclass(frozen=True)
class MaskedPack:
    """A pack as the model sees it, and what it must say.

    Attributes:
        input_ids: (T,) int64, corrupted.
        cu_seqlens: (D + 1,) int32 borders of the segments.
        max_seqlen: a bound on their lengths.
        positions: (K,) int64, the selected positions.
        labels: (K,) int64, the original ids there.
        num_tokens: tokens of pieces in the pack, padding not counted.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    positions: Tensor
    labels: Tensor
    num_tokens: int

    @property
    def num_targets(self) -> int:
        """K, known without asking the device."""
        return len(self.labels)

    def to(self, device: torch.device) -> "MaskedPack":
        """The same on another device; to CUDA through pinned memory, without waiting."""

        if device == self.input_ids.device:
            return self
        tensors = (self.input_ids, self.cu_seqlens, self.positions, self.labels)
        input_ids, cu_seqlens, positions, labels = moved(tensors, device)
        return MaskedPack(input_ids, cu_seqlens, self.max_seqlen, positions, labels, self.num_tokens)


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on another device; to CUDA through pinned memory, without waiting."""
    if device.type != "cuda":
        return [x.to(device) for x in tensors]
    with torch.cuda.device(device):  # memory is pinned for the current device, which every thread has of its own
        return [(x.pin_memory() if x.device.type == "cpu" else x).to(device, non_blocking=True) for x in tensors]


class PackMasker:
    """Masks packs by a hash of (seed, visit, piece, position): the same masks on any device and in any packing.

    Args:
        special: what the vocabulary reserves.
        seed: of the masks.
        replace_prob: among the selected positions, the share not shown as it is.
        random_token_prob: among the selected positions, the share shown as a random token.
        selection: "tokens", "words", "spans", "ngrams", or "balanced": each token in its turn, visit by visit.
        words: the vocabulary's `WordTable`, for selections of whole words.

    Raises:
        ValueError: an unknown selection, or one of words without a table. At the first call, `random_token_prob` above
            `replace_prob`, or probabilities outside [0, 1].
    """

    def __init__(
        self,
        special: SpecialTokens,
        seed: int,
        replace_prob: float = 1.0,
        random_token_prob: float = 0.0,
        *,
        selection: str = "tokens",
        words: WordTable | None = None,
    ):
        known = (*SELECTIONS, BALANCED)
        if selection not in known:
            raise ValueError(f"selection {selection!r} is unknown; choose one of {', '.join(known)}")
        self._of_words = SELECTIONS.get(selection) in OF_WORDS
        if self._of_words and words is None:
            raise ValueError(f"selection {selection!r} needs to know where words begin; pass words=derive_words(…)")
        self.special, self.seed, self.selection, self.words = special, seed, selection, words
        self.replace_prob, self.random_token_prob = replace_prob, random_token_prob
        self._is_special = special.is_special()
        self._drawable_ids = special.drawable_ids()

    def __call__(self, pack: Pack, mask_prob: int) -> MaskedPack:
        """Mask a pack at a rate of `mask_prob` millionths: ceil(p n) of each piece's n maskable tokens, or as many of
        its whole words or spans as stay within that.
        """
        input_ids = torch.from_numpy(pack.input_ids)
        cu_seqlens = torch.from_numpy(pack.cu_seqlens)
        visits, pieces = torch.from_numpy(pack.visits), torch.from_numpy(pack.pieces)
        scores = flat_scores(self.seed, visits, pieces, cu_seqlens, num_tokens=len(input_ids))
        maskable = ~self._is_special[input_ids]
        where_words = {"words": self.words} if self._of_words else {}
        if self.selection == BALANCED:  # one order of a piece's positions for all its visits
            order = flat_scores(self.seed, torch.zeros_like(visits), pieces, cu_seqlens, num_tokens=len(input_ids))
            selected = select_balanced(order, input_ids, maskable, mask_prob, visits=visits, cu_seqlens=cu_seqlens)
        else:
            select = SELECTIONS[self.selection]
            selected = select(scores, input_ids, maskable, mask_prob, cu_seqlens=cu_seqlens, **where_words)
        corrupted = corrupt(
            input_ids,
            selected,
            scores,
            mask_token_id=self.special.mask_token_id,
            replace_prob=self.replace_prob,
            random_token_prob=self.random_token_prob,
            drawable_ids=self._drawable_ids,
        )
        where = selected.nonzero().squeeze(1)
        longest = int(pack.lengths.max())
        return MaskedPack(corrupted.input_ids, cu_seqlens.int(), longest, where, input_ids[where], pack.num_tokens)


def pack_logits(model: nn.Module, head: Head | None, pack: MaskedPack, positions: Tensor | None = None) -> Tensor:
    """Logits (K, V) at a pack's selected positions, or at others, by a model that takes flat packs."""
    layout = {"cu_seqlens": pack.cu_seqlens, "max_seqlen": pack.max_seqlen}
    positions = pack.positions if positions is None else positions
    if head is None:
        return model(pack.input_ids, **layout)[positions]
    return logits_at(model, head, positions, pack.input_ids, **layout)


def rounded_targets(positions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and labels (K,) with K rounded up: position 0, without a label, fills up what is missing.

    Example:
        >>> positions, labels = rounded_targets(torch.tensor([3, 5]), torch.tensor([70, 71]))
        >>> len(positions), positions.tolist()[:4], labels.tolist()[:4]
        (16, [3, 5, 0, 0], [70, 71, -100, -100])
    """
    missing = -len(labels) % TARGETS_STEP
    return F.pad(positions, (0, missing)), F.pad(labels, (0, missing), value=IGNORE_INDEX)


def pack_loss(
    model: nn.Module, head: Head | None, pack: MaskedPack, *, z_loss: float = 0.0, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Summed loss of a pack, to be divided by the count of the whole batch, and how many of its targets were right.

    `z_loss` as in `cross_entropy`: it is a part of the sum. `fused` as in `cross_entropy_with_hits`.
    """
    positions, labels = rounded_targets(pack.positions, pack.labels)
    logits = pack_logits(model, head, pack, positions)
    # Of another model's logits we don't know who needs them: a tanh that limits them keeps its result for backward.
    own = takes_positions(model)
    return cross_entropy_with_hits(logits, labels, z_loss=z_loss, fused=fused, overwrite=own)
