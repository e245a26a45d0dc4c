"""The two shapes that documents come in, under one set of operations, so that each selection is written once.

Padded: (B, L), each row a document. Flat: (T,) with `cu_seqlens` (D + 1,), whole documents end to end. Along the last
dimension both read the same; what differs is how a document is summed over, sorted within, and spread over its tokens.
"""

# B rows, L length, T tokens of a pack, D documents (B of them in the padded layout)

from __future__ import annotations

import torch
from torch import Tensor

from mlm_pytorch.masking.scores import MILLION, POSITION_BITS, document_of_token
from mlm_pytorch.tokens import values_at_hand

SCORE_BITS = 32 + POSITION_BITS
LAST = (1 << SCORE_BITS) - 1  # no score is greater: the key of what cannot be chosen
_MAX_KEYED_DOCUMENTS = 1 << (63 - SCORE_BITS)


class Rows:
    """The padded layout. Fixed shapes, and nothing that the host waits for."""

    def __init__(self, like: Tensor) -> None:
        self.num_documents, self.length = like.shape
        self.index = torch.arange(self.length, device=like.device).expand_as(like)
        self.starts = torch.zeros(self.num_documents, dtype=torch.int64, device=like.device)

    def count(self, flags: Tensor) -> Tensor:
        """(B,): how many are True in each document."""
        return flags.sum(-1)

    def spread(self, per_document: Tensor) -> Tensor:
        """(B,) -> (B, 1), which broadcasts over a document's positions."""
        return per_document.unsqueeze(-1)

    def cumsum(self, x: Tensor) -> Tensor:
        """Running sums that begin anew with each document."""
        return x.cumsum(-1)

    def sort(self, keys: Tensor, at_most: int | None = None) -> tuple[Tensor, Tensor]:
        """(keys in ascending order within each document, the indices along the last dimension that they come from).

        at_most: as many as will be looked at; the rest may be missing.
        """
        if at_most is None or at_most * 2 > self.length:
            ordered, order = torch.sort(keys, dim=-1)
        else:
            ordered, order = torch.topk(keys, at_most, dim=-1, largest=False)
        return ordered, order

    def at(self, ordered: Tensor, ranks: Tensor) -> Tensor:
        """(B,): the entry of each document at its rank."""
        return ordered.gather(-1, self.spread(ranks)).squeeze(-1)


class Pack:
    """The flat layout."""

    def __init__(self, like: Tensor, cu_seqlens: Tensor) -> None:
        bounds = cu_seqlens.to(like.device, torch.int64)
        self.num_documents, self.length = bounds.numel() - 1, like.numel()
        self.bounds, self.starts = bounds, bounds[:-1]
        self.index = torch.arange(self.length, device=like.device)
        self.document = document_of_token(bounds, self.length)

    def count(self, flags: Tensor) -> Tensor:
        """(D,): how many are True in each document."""
        return self._running(flags).index_select(0, self.bounds).diff()

    def spread(self, per_document: Tensor) -> Tensor:
        """(D,) -> (T,): each document's entry at all its positions."""
        return per_document.index_select(0, self.document)

    def cumsum(self, x: Tensor) -> Tensor:
        """Running sums that begin anew with each document."""
        running = self._running(x)
        return running[1:] - self.spread(running.index_select(0, self.starts))

    def sort(self, keys: Tensor, _at_most: int | None = None) -> tuple[Tensor, Tensor]:
        """(keys in ascending order within each document, the indices that they come from), all of them.

        One sort does for all documents: their numbers go above the 52 bits of a score. Where there are more documents
        than the remaining bits can count, two stable sorts, the second by document.
        """
        if self.num_documents < _MAX_KEYED_DOCUMENTS:
            ordered, order = torch.sort((self.document << SCORE_BITS) | keys)
            return ordered & LAST, order
        by_key = torch.sort(keys, stable=True).indices
        order = by_key[torch.sort(self.document[by_key], stable=True).indices]
        return keys[order], order

    def at(self, ordered: Tensor, ranks: Tensor) -> Tensor:
        """(D,): the entry of each document at its rank."""
        return ordered.index_select(0, (self.starts + ranks).clamp(max=self.length - 1))

    @staticmethod
    def _running(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x.cumsum(0), (1, 0))


Layout = Rows | Pack


def checked_layout(scores: Tensor, input_ids: Tensor, maskable: Tensor, cu_seqlens: Tensor | None) -> Layout:
    """The layout of a selection's arguments, after checking that they fit together.

    Values are checked on CPU only: elsewhere it would stall the device. Raises ValueError.
    """
    if not scores.shape == input_ids.shape == maskable.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)}, input_ids {tuple(input_ids.shape)} and maskable {tuple(maskable.shape)} "
            "differ in shape; pass one score and one flag per id"
        )
    if maskable.dtype != torch.bool:
        raise ValueError(f"maskable is {maskable.dtype}; pass bool, True where a token may be selected")
    if scores.dtype != torch.int64:
        raise ValueError(f"scores are {scores.dtype}; pass int64 from draw_scores or hash_scores")
    dims = 2 if cu_seqlens is None else 1
    if input_ids.dim() != dims:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} have {input_ids.dim()} dimensions; "
            "pass (batch, length), or (tokens,) together with cu_seqlens"
        )
    if values_at_hand(scores) and scores.numel():
        low, high = (int(x) for x in torch.aminmax(scores))
        if low < 0 or high > LAST:
            raise ValueError(
                f"scores {low}..{high} leave [0, 2**{SCORE_BITS}), so positions reach 2**{POSITION_BITS} or the scores "
                "are not of draw_scores or hash_scores; cut pieces shorter or draw scores there"
            )
    if cu_seqlens is None:
        return Rows(input_ids)
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise ValueError(f"cu_seqlens {tuple(cu_seqlens.shape)} bound no document; pass (documents + 1,) offsets")
    if values_at_hand(cu_seqlens):
        first, last, steps = int(cu_seqlens[0]), int(cu_seqlens[-1]), cu_seqlens.diff()
        if first != 0 or last != input_ids.numel() or bool((steps < 0).any()):
            raise ValueError(
                f"cu_seqlens run from {first} to {last} over {input_ids.numel()} tokens; "
                "they must rise from 0 to the number of tokens"
            )
    return Pack(input_ids, cu_seqlens)


def wanted_counts(layout: Layout, maskable: Tensor, mask_prob: int | Tensor) -> Tensor:
    """(D,): ceil(p * n) of each document's n maskable tokens, by integers alone.

    mask_prob: p in millionths, one integer, or an integer tensor () or (D,). Raises ValueError for anything else.
    """
    if isinstance(mask_prob, Tensor):
        _check_rates(layout, mask_prob)
    elif not isinstance(mask_prob, int) or isinstance(mask_prob, bool):
        raise ValueError(f"mask_prob {mask_prob!r} is not a whole number of millionths; pass millionths({mask_prob})")
    elif not 0 <= mask_prob <= MILLION:
        raise ValueError(f"mask_prob {mask_prob} is outside [0, {MILLION}] millionths; pass millionths(0.15) and such")
    return (layout.count(maskable) * mask_prob + (MILLION - 1)) // MILLION


def most_wanted(layout: Layout, mask_prob: int | Tensor) -> int | None:
    """A bound that the host knows on how many tokens, and so units, a document can have selected; None without one."""
    return None if isinstance(mask_prob, Tensor) else max(1, -(-mask_prob * layout.length // MILLION))


def _check_rates(layout: Layout, rates: Tensor) -> None:
    if rates.is_floating_point() or rates.dtype == torch.bool:
        raise ValueError(f"mask_prob is a {rates.dtype} tensor; pass int64 millionths")
    if rates.dim() and rates.shape != (layout.num_documents,):
        raise ValueError(
            f"mask_prob {tuple(rates.shape)} does not fit {layout.num_documents} documents; pass one rate per document"
        )
    if values_at_hand(rates) and rates.numel():
        low, high = (int(x) for x in torch.aminmax(rates))
        if low < 0 or high > MILLION:
            raise ValueError(f"mask_prob {low}..{high} leaves [0, {MILLION}] millionths; pass shares of a million")
