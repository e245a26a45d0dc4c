"""Masked loss by kind of token: how often it occurs, whether it begins a word, how long its piece is, its source.

Memory is bounded: sums per id of the vocabulary, per doubling of the length, and per source, of which a few are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlm_pytorch.objective.packs import MaskedPack, Pack
from mlm_pytorch.tokens import SpecialTokens, WordTable

MOST_SOURCES = 64  # the first that come; the others are counted together
OTHER_SOURCES = "(other sources)"
BANDS = (10_000, 1_000, 100, 10, 0)  # lower edges, occurrences per million tokens
_COUNT, _LOSS, _CORRECT = range(3)


@dataclass(frozen=True)
class Group:
    """Masked loss over some of the predicted tokens: `loss` in nats per token, `accuracy` a share."""

    loss: float
    accuracy: float
    num_targets: int


class Breakdown:
    """Adds up what `masked_loss` measures, pack by pack.

    Args:
        special: what the vocabulary reserves.
        words: where words begin, or None where the ids do not show it.
        source: where a piece of the current pack came from, by its number; None leaves sources out.
        occurrences: (V,) how often each id occurs in a corpus, to say which are frequent. By default counted in the
            packs themselves, which must be many to hold what is rare.

    Example:
        >>> breakdown = Breakdown(store.special, derive_words(tokenizer.backend), store.source)
        >>> masked_loss(model, packs, store.special, breakdown=breakdown)
        >>> breakdown.groups()["word"]["begins a word"].loss
        5.1
    """

    def __init__(
        self,
        special: SpecialTokens,
        words: WordTable | None = None,
        source: Callable[[int], str | None] | None = None,
        occurrences: np.ndarray | None = None,
    ):
        self.special, self.words, self.source = special, words, source
        self._counts_itself = occurrences is None
        self._occurrences = np.zeros(special.num_tokens, np.int64) if occurrences is None else occurrences
        self._by_id = np.zeros((3, special.num_tokens))
        self._by_word = np.zeros((3, 2))
        self._by_length = np.zeros((3, 64))
        self._by_source: dict[str, np.ndarray] = {}

    def add(self, pack: Pack, masked: MaskedPack, losses: Tensor, correct: Tensor) -> None:
        """Count a pack: before masking, as masked, and (K,) losses and bools on the CPU, one per predicted token."""
        values = np.stack([np.ones(len(losses)), losses.double().numpy(), correct.double().numpy()])
        labels, positions = masked.labels.cpu().numpy(), masked.positions.cpu().numpy()
        if self._counts_itself:
            content = pack.input_ids[~np.isin(pack.input_ids, self.special.ids)]
            self._occurrences += np.bincount(content, minlength=self.special.num_tokens)
        self._by_id += _binned(labels, values, self.special.num_tokens)
        if self.words is not None:
            starts = self.words.starts_word(
                torch.from_numpy(pack.input_ids), cu_seqlens=torch.from_numpy(pack.cu_seqlens)
            ).numpy()
            first = _first_of_content(pack, len(self.special.prefix))
            self._by_word += _binned((starts | first)[positions].astype(np.int64), values, 2)
        segment = np.searchsorted(pack.cu_seqlens, positions, side="right") - 1
        doubling = np.ceil(np.log2(np.maximum(pack.lengths, 1))).astype(np.int64)
        self._by_length += _binned(doubling[segment], values, 64)
        if self.source is not None:
            for index in np.unique(segment).tolist():
                name = self.source(int(pack.pieces[index])) or "(no source)"
                if name not in self._by_source and len(self._by_source) >= MOST_SOURCES:
                    name = OTHER_SOURCES
                total = self._by_source.setdefault(name, np.zeros(3))
                total += values[:, segment == index].sum(1)

    def groups(self) -> dict[str, dict[str, Group]]:
        """Groups by "frequency" (here, or in `occurrences`), "word", "length" (of the piece, framed) and "source"."""
        rate = self._occurrences * 1e6 / max(1, self._occurrences.sum())
        upper = float("inf")
        frequency: dict[str, np.ndarray] = {}
        for edge in BANDS:
            band = (rate >= edge) & (rate < upper)
            name = (
                f"{edge:,} or more" if upper == float("inf") else f"{edge:,} to {int(upper):,}" if edge else "below 10"
            )
            frequency[f"{name} per million"] = self._by_id[:, band].sum(1)
            upper = edge
        found = {"frequency": frequency}
        if self.words is not None:
            found["word"] = {"begins a word": self._by_word[:, 1], "continues a word": self._by_word[:, 0]}
        found["length"] = {f"{2 ** (i - 1) + 1 if i else 1} to {2**i} tokens": self._by_length[:, i] for i in range(64)}
        if self.source is not None:
            found["source"] = self._by_source
        return {
            axis: {
                name: Group(total[_LOSS] / total[_COUNT], total[_CORRECT] / total[_COUNT], int(total[_COUNT]))
                for name, total in groups.items()
                if total[_COUNT]
            }
            for axis, groups in found.items()
        }


def _binned(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of each row of `values` (3, K) by `index` (K,): (3, size)."""
    return np.stack([np.bincount(index, weights=row, minlength=size) for row in values])


def _first_of_content(pack: Pack, prefix: int) -> np.ndarray:
    """Bool (T,): the first token after each piece's framing, which begins a word even where the document was cut."""
    first = np.zeros(len(pack.input_ids), dtype=bool)
    starts = pack.cu_seqlens[:-1] + prefix
    first[starts[starts < len(first)]] = True
    return first
