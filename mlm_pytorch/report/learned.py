"""What a model does with held-out pieces: accuracy by kind of token, and samples with its candidates.

Shapes: K predicted positions, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mlm_pytorch.data.packing import Pack, build_pack
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation import Breakdown, Group, MaskedResult, masked_loss
from mlm_pytorch.evaluation.fill import token_name, visible
from mlm_pytorch.evaluation.masked import EVALUATION_SEED
from mlm_pytorch.masking import millionths
from mlm_pytorch.modes import evaluating
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_logits
from mlm_pytorch.tokens import WordTable

MASK_PROB = 0.15
TOP_K = 5
PACK_TOKENS = 4096  # computed at a time
COUNTED_TOKENS = 1 << 21  # of the training split, to say which tokens are frequent
SAMPLE_TOKENS = 60  # samples are of about this length, where there are such pieces
SHOWN_TOKENS = 160  # and never longer on the page
LOOKED_AT = 256  # pieces, to find a sample of that length


@dataclass(frozen=True)
class Candidate:
    """A token as a reader sees it, and the model's probability for it."""

    text: str
    probability: float


@dataclass(frozen=True)
class Fragment:
    """A stretch of a sample: text as it stands, or one masked token with what the model would have put there.

    Attributes:
        text: the original.
        probability: the model's, for the original; None for text that was not masked.
        is_right: whether the original is the likeliest.
        candidates: the likeliest, best first.
    """

    text: str
    probability: float | None = None
    is_right: bool = False
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A held-out piece, or its beginning (`is_cut`)."""

    source: str | None
    fragments: tuple[Fragment, ...]
    is_cut: bool


@dataclass(frozen=True)
class Learned:
    """What was seen of a model.

    Attributes:
        result: masked loss over the pieces looked at, None where none were asked for.
        groups: the same by kind of token, as `Breakdown.groups` has it.
        num_pieces, of_pieces: pieces looked at, and those there are.
        samples: pieces with their masks.
    """

    result: MaskedResult | None
    groups: dict[str, dict[str, Group]]
    num_pieces: int
    of_pieces: int
    samples: tuple[Sample, ...]


def look(
    model: nn.Module,
    tokenizer: Tokenizer,
    held_out: TokenStore,
    *,
    words: WordTable | None,
    occurrences: np.ndarray | None,
    num_tokens: int,
    num_samples: int,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Learned:
    """Let a model predict held-out tokens, at the positions that every evaluation masks.

    Args:
        model: takes flat packs; its training mode is restored.
        tokenizer: the model's.
        held_out: pieces it was not trained on.
        words: where words begin, or None where ids do not show it.
        occurrences: (V,) counts of the training corpus (`count_sample`), or None to count the pieces themselves.
        num_tokens: about how many tokens of pieces to look at, spread over the split; 0 for none.
        num_samples: pieces to show; 0 for none.
        autocast: dtype of matrix products, or None for the parameters' own.
        progress: called with the tokens read so far.

    Raises:
        ValueError: a model whose logits are not finite.
    """
    pieces = _spread(held_out, num_tokens)
    result, groups = None, {}
    if len(pieces):
        breakdown = Breakdown(held_out.special, words, held_out.source, occurrences)
        result = masked_loss(
            model,
            _packs(held_out, pieces),
            held_out.special,
            mask_prob=MASK_PROB,
            autocast=autocast,
            breakdown=breakdown,
            progress=progress,
        )
        groups = breakdown.groups()
    samples = [_sample(model, tokenizer, held_out, index, autocast) for index in _chosen(held_out, num_samples)]
    return Learned(result, groups, len(pieces), len(held_out), tuple(samples))


def count_sample(store: TokenStore, num_tokens: int = COUNTED_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """How often each id occurs (V,) in pieces spread over a split, and which pieces those are."""
    pieces = _spread(store, num_tokens)
    counts = np.zeros(store.special.num_tokens, np.int64)
    for start in range(0, len(pieces), 4096):
        ids = np.concatenate([store.piece(i) for i in pieces[start : start + 4096].tolist()])
        counts += np.bincount(ids, minlength=len(counts))
    return counts, pieces


def _spread(store: TokenStore, num_tokens: int) -> np.ndarray:
    """Indices of pieces at even distances, with about `num_tokens` tokens together."""
    count = math.ceil(len(store) * min(1.0, num_tokens / max(1, store.num_tokens)))
    return ((np.arange(count) + 0.5) * len(store) / max(1, count)).astype(np.int64)


def _packs(store: TokenStore, pieces: np.ndarray) -> Iterator[Pack]:
    framing = len(store.special.prefix) + len(store.special.suffix)
    ends = (store.lengths(pieces) + framing).cumsum()
    for part in np.split(pieces, np.flatnonzero(np.diff(ends // PACK_TOKENS)) + 1):
        yield build_pack(store, part, np.zeros(len(part), np.int64))


# -- samples -----------------------------------------------------------------------------------------------------------


def _chosen(store: TokenStore, count: int) -> list[int]:
    """From each of `count` equal parts of a split, the piece whose length is nearest to `SAMPLE_TOKENS`."""
    edges = np.linspace(0, len(store), min(count, len(store)) + 1).astype(np.int64)
    chosen = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        indices = np.unique(np.linspace(first, end - 1, min(LOOKED_AT, end - first)).astype(np.int64))
        chosen.append(int(indices[np.abs(store.lengths(indices) - SAMPLE_TOKENS).argmin()]))
    return chosen


@torch.no_grad()
def _sample(
    model: nn.Module, tokenizer: Tokenizer, store: TokenStore, index: int, autocast: torch.dtype | None
) -> Sample:
    special = store.special
    pack = build_pack(store, np.array([index]), np.zeros(1, np.int64))
    masked = PackMasker(special, seed=EVALUATION_SEED)(pack, millionths(MASK_PROB))
    shown = masked.positions < len(special.prefix) + SHOWN_TOKENS  # in increasing order, so that these come first
    masked = replace(masked, positions=masked.positions[shown], labels=masked.labels[shown])
    probabilities, candidates = _predicted(model, masked, special.is_special(), autocast)
    texts = token_texts(tokenizer, store.piece(index)[:SHOWN_TOKENS].tolist())
    places = {int(p) - len(special.prefix): k for k, p in enumerate(masked.positions.tolist())}
    fragments: list[Fragment] = []
    for place, text in enumerate(texts):
        if place not in places:
            fragments.append(Fragment(text))
            continue
        bare = text.strip()
        blanks = text[: len(text) - len(text.lstrip())] if bare else ""
        if blanks:
            fragments.append(Fragment(blanks))
        k = places[place]
        named = tuple(Candidate(token_name(tokenizer, token), share) for token, share in candidates[k])
        label = int(masked.labels[k])
        shown_as = bare or (visible(text) if text else token_name(tokenizer, label))
        fragments.append(Fragment(shown_as, probabilities[k], candidates[k][0][0] == label, named))
        if text[len(text.rstrip()) :] and (bare or "\n" in text):
            fragments.append(Fragment(text[len(text.rstrip()) :] if bare else "\n"))
    return Sample(store.source(index), tuple(fragments), is_cut=store.length(index) > SHOWN_TOKENS)


def _predicted(
    model: nn.Module, masked: MaskedPack, is_special: Tensor, autocast: torch.dtype | None
) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """The probability of each of K originals, and of the likeliest ids there; special tokens are no candidates."""
    device = next(model.parameters()).device
    moved, own = masked.to(device), getattr(model, "logits_at", None)
    with evaluating(model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        if own is None:
            logits_KV = pack_logits(model, find_head(model), moved)
        else:
            logits_KV = own(moved.positions, moved.input_ids, cu_seqlens=moved.cu_seqlens, max_seqlen=moved.max_seqlen)
    logits_KV = logits_KV.float()[:, : len(is_special)].masked_fill(is_special.to(device), float("-inf"))
    shares_KV = logits_KV.softmax(-1)
    best, ids = shares_KV.topk(min(TOP_K, shares_KV.shape[1]))
    original = shares_KV.gather(1, moved.labels[:, None]).squeeze(1)
    if not bool(torch.isfinite(original).all()):
        raise ValueError("the model's logits are not finite; it is damaged or did not train well")
    pairs = [list(zip(row, shares, strict=True)) for row, shares in zip(ids.tolist(), best.tolist(), strict=True)]
    return original.tolist(), pairs


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text, blanks included; joined, they are the text.

    A character whose bytes are several tokens stands whole at the last of them. Where a tokenizer's decoder changes
    what stood before, tokens are shown by name.
    """
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.backend.decode(ids[:end], skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
        elif text.startswith(before):
            texts.append(text[len(before) :])
            before = text
        else:
            texts.append(" " + token_name(tokenizer, ids[end - 1]))
            before = text
    return texts
