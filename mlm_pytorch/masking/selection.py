"""Which positions are predicted: tokens, whole words, spans, n-grams, or each position in its turn.

Every selection takes `(scores, input_ids, maskable, mask_prob, *, cu_seqlens=None)` and returns flags of that shape:

    scores     int64, from `draw_scores` or `hash_scores`; a smaller score is selected sooner
    input_ids  int64, (B, L) with a document per row, or (T,) with whole documents end to end
    maskable   bool: False at specials and padding, which are never selected
    mask_prob  the share p in millionths: one integer, or a tensor of one per document
    cu_seqlens (D + 1,) integers, the documents' bounds in the flat layout

A document's own scores alone decide, so it has the same selection alone, in any batch and in any pack. Cost: one sort.
Fixed shapes throughout, so all compile with `fullgraph=True`; the padded layout never makes the host wait.

Raises ValueError where shapes, types or rates do not fit (`layout.checked_layout`, `layout.wanted_counts`).
"""

# B rows, L length, T tokens of a pack, D documents; n maskable tokens of a document, k = ceil(p * n)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from mlm_pytorch.masking.layout import LAST, Layout, checked_layout, most_wanted, wanted_counts
from mlm_pytorch.masking.scores import MILLION, remix
from mlm_pytorch.tokens import WordTable

_SPAN_SALT = 0x7370616E73
_U32 = 0xFFFFFFFF


def select_tokens(
    scores: Tensor,
    input_ids: Tensor,
    maskable: Tensor,
    mask_prob: int | Tensor,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Exactly ceil(p * n) of each document's n maskable tokens, all such sets equally likely.

    >>> ids = torch.arange(10).view(1, 10)
    >>> select_tokens(draw_scores(ids), ids, ids >= 3, 150_000).sum().item()    # ceil(0.15 * 7)
    2
    """
    layout = checked_layout(scores, input_ids, maskable, cu_seqlens)
    wanted = wanted_counts(layout, maskable, mask_prob)
    if not maskable.numel():
        return maskable.clone()
    ordered, _ = layout.sort(torch.where(maskable, scores, LAST), most_wanted(layout, mask_prob))
    return maskable & (scores <= layout.spread(_threshold(layout, ordered, wanted)))


def select_balanced(
    scores: Tensor,
    input_ids: Tensor,
    maskable: Tensor,
    mask_prob: int | Tensor,
    *,
    visits: int | Tensor,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Every position in its turn: visit v takes ranks v * k ... (v + 1) * k - 1, modulo n, of the order of the scores.

    While k stays the same, any n visits in a row select each position exactly k times, and positions' totals never
    differ by more than one. Stateless, so `scores` must not depend on the visit: `hash_scores(seed, visits=0, ...)`;
    give `corrupt` the visit's own scores.

    visits: how often the document has been served, one integer or int64 (D,). Otherwise as `select_tokens`.

    >>> ids = torch.arange(4).view(1, 4); scores = draw_scores(ids)
    >>> one, other = (select_balanced(scores, ids, ids >= 0, 500_000, visits=v) for v in (0, 1))
    >>> bool((one ^ other).all())
    True
    """
    layout = checked_layout(scores, input_ids, maskable, cu_seqlens)
    wanted = wanted_counts(layout, maskable, mask_prob)
    if not maskable.numel():
        return maskable.clone()
    if isinstance(visits, Tensor) and visits.dim() and visits.shape != (layout.num_documents,):
        raise ValueError(
            f"visits {tuple(visits.shape)} do not fit {layout.num_documents} documents; pass one number per document"
        )
    number = layout.count(maskable)
    modulus = number.clamp(min=1)
    begin = (visits % modulus) * wanted % modulus
    end = (begin + wanted - 1) % modulus
    ordered, _ = layout.sort(torch.where(maskable, scores, LAST))
    low, high = (layout.spread(layout.at(ordered, rank)) for rank in (begin, end))
    above, below = scores >= low, scores <= high
    inside = torch.where(layout.spread(begin <= end), above & below, above | below)
    return maskable & inside & layout.spread(wanted > 0)


def select_words(
    scores: Tensor,
    input_ids: Tensor,
    maskable: Tensor,
    mask_prob: int | Tensor,
    *,
    words: WordTable,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Whole words in the order of their first tokens' scores while the count stays within ceil(p * n), at least one.

    Tokens of a word that are not maskable do not count and are not selected; the rest of the word is.

    words: of the tokenizer that made the ids, on their device (`derive_words`). Otherwise as `select_tokens`.

    Raises ValueError without a word table.
    """
    _require_words(words)
    layout = checked_layout(scores, input_ids, maskable, cu_seqlens)
    wanted = wanted_counts(layout, maskable, mask_prob)
    if not maskable.numel():
        return maskable.clone()
    heads = words.starts_word(input_ids, cu_seqlens=cu_seqlens)
    return _take_units(layout, scores, heads, maskable, wanted, most_wanted(layout, mask_prob))


@dataclass(frozen=True)
class SpanLengths:
    """A distribution of span lengths: `weights[i]` is the integer weight of length i + 1.

    >>> SpanLengths.uniform(3).weights
    (1, 1, 1)

    Raises ValueError where no weight is positive or one is negative.
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not any(self.weights) or min(self.weights) < 0:
            raise ValueError(f"weights {self.weights} give no distribution; pass non-negative integers, one positive")

    @classmethod
    def geometric(cls, prob: float = 0.2, longest: int = 10) -> SpanLengths:
        """SpanBERT's (Joshi et al. 2020, section 3.1): Geo(prob) restricted to 1..longest; mean 3.8 by default."""
        if not 0 < prob < 1 or longest < 1:
            raise ValueError(f"geometric({prob}, {longest}) is no distribution; take prob in (0, 1) and longest >= 1")
        stay = 1 - Fraction(prob).limit_denominator(MILLION)
        top, bottom = stay.numerator, stay.denominator
        return cls(tuple(top**i * bottom ** (longest - 1 - i) for i in range(longest)))

    @classmethod
    def uniform(cls, longest: int = 3) -> SpanLengths:
        """Each of 1..longest alike, as gpt-bert has it with 3 (Charpentier and Samuel 2024)."""
        return cls((1,) * longest)

    @classmethod
    def harmonic(cls, longest: int = 3) -> SpanLengths:
        """Length l with weight 1 / l, as ALBERT's n-grams have it with 3 (Lan et al. 2020, section 4.1)."""
        product = 1
        for length in range(2, longest + 1):
            product *= length
        return cls(tuple(product // length for length in range(1, longest + 1)))

    def draw(self, scores: Tensor) -> Tensor:
        """int64, of scores' shape: a length from each score, independent of the scores' order."""
        bits = (remix(scores, _SPAN_SALT) >> 32) & _U32
        lengths = torch.ones_like(scores)
        total, reached = sum(self.weights), 0
        for weight in self.weights[:-1]:
            reached += weight
            lengths = lengths + (bits >= -(-(reached << 32) // total))
        return lengths


SPANBERT_LENGTHS = SpanLengths.geometric()
GPT_BERT_LENGTHS = SpanLengths.uniform()
NGRAM_LENGTHS = SpanLengths.harmonic()


def select_spans(
    scores: Tensor,
    input_ids: Tensor,
    maskable: Tensor,
    mask_prob: int | Tensor,
    *,
    lengths: SpanLengths = SPANBERT_LENGTHS,
    words: WordTable | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Spans of random lengths in random order while the count stays within ceil(p * n), at least one span.

    The document's maskable tokens are laid out in spans of independent lengths; no span reaches across a token that is
    not maskable, where it ends early. The spans are then taken in the order of their first tokens' scores.

    lengths: SPANBERT_LENGTHS, GPT_BERT_LENGTHS, or another. words: given, lengths count whole words instead of tokens,
    as in SpanBERT. Otherwise as `select_tokens`.
    """
    layout = checked_layout(scores, input_ids, maskable, cu_seqlens)
    wanted = wanted_counts(layout, maskable, mask_prob)
    if not maskable.numel():
        return maskable.clone()
    if words is None:
        heads = torch.ones_like(maskable)
    else:
        heads = words.starts_word(input_ids, cu_seqlens=cu_seqlens)
    heads = _join_units(layout, scores, heads, maskable, lengths)
    return _take_units(layout, scores, heads, maskable, wanted, most_wanted(layout, mask_prob))


def select_ngrams(
    scores: Tensor,
    input_ids: Tensor,
    maskable: Tensor,
    mask_prob: int | Tensor,
    *,
    words: WordTable,
    lengths: SpanLengths = NGRAM_LENGTHS,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """n-grams of whole words, of length n with weight 1 / n up to 3 as in ALBERT; `select_spans` with these lengths.

    Raises ValueError without a word table.
    """
    _require_words(words)
    return select_spans(scores, input_ids, maskable, mask_prob, lengths=lengths, words=words, cu_seqlens=cu_seqlens)


def max_selected(lengths: Iterable[int], mask_prob: int, *, longest_unit: int = 1) -> int:
    """How many positions a selection may take at most, from the documents' lengths, on the host: for fixed shapes.

    lengths: tokens of each document, an upper bound of its maskable ones. longest_unit: 1 for tokens, 10 for SpanBERT's
    spans, unknown (so the longest document) for words, since one unit is always taken.

    >>> max_selected([100, 7], 150_000)
    17
    """
    if not mask_prob:
        return 0
    return sum(max(-(-mask_prob * n // MILLION), min(n, longest_unit)) for n in map(int, lengths))


# --- how it is done ---------------------------------------------------------------------------------------------------


def _require_words(words: WordTable | None) -> None:
    if not isinstance(words, WordTable):
        raise ValueError(
            f"whole words need a word table, got {words!r}; pass words=derive_words(tokenizer), or select tokens"
        )


def _threshold(layout: Layout, ordered: Tensor, number: Tensor) -> Tensor:
    """(D,): the key up to which a document takes `number` of its ordered keys; below every score where that is 0."""
    return layout.at(ordered, (number - 1).clamp(min=0)).masked_fill(number == 0, -1)


def _head_of(layout: Layout, heads: Tensor) -> Tensor:
    """Index along the last dimension, for each token, of its unit's first token. heads: True there, and where documents
    begin."""
    return torch.where(heads, layout.index, 0).cummax(-1).values


def _sizes(head: Tensor, maskable: Tensor) -> Tensor:
    """The number of maskable tokens of each unit, at its first token; 0 elsewhere."""
    return torch.zeros_like(head).scatter_add(-1, head, maskable.long())


def _take_units(
    layout: Layout, scores: Tensor, heads: Tensor, maskable: Tensor, wanted: Tensor, at_most: int | None
) -> Tensor:
    """Whole units in the order of their first tokens' scores while the count stays within `wanted`, at least one."""
    head = _head_of(layout, heads)
    size = _sizes(head, maskable)
    ordered, order = layout.sort(torch.where(size > 0, scores, LAST), at_most)
    fits = layout.cumsum(size.gather(-1, order)) <= layout.spread(wanted)
    number = layout.count(fits).clamp(min=1) * (wanted > 0)
    return maskable & (scores.gather(-1, head) <= layout.spread(_threshold(layout, ordered, number)))


def _join_units(layout: Layout, scores: Tensor, heads: Tensor, maskable: Tensor, lengths: SpanLengths) -> Tensor:
    """The first tokens of spans: units joined in runs of random lengths, ended early by units that cannot be masked.

    A document's units with anything to mask are numbered 0, 1, 2, ...; the length that the j-th of them draws is the
    j-th span's, so running sums of lengths are the numbers at which spans begin.
    """
    head = _head_of(layout, heads)
    size = _sizes(head, maskable)
    live = size > 0
    number = layout.cumsum(live) - 1
    start = layout.spread(layout.starts)
    beyond = layout.length  # a slot for what does not count

    def slots(index: Tensor, keep: Tensor, values: Tensor) -> Tensor:
        room = torch.zeros(*head.shape[:-1], layout.length + 1, dtype=torch.int64, device=head.device)
        return room.scatter(-1, torch.where(keep, index, beyond), values)

    drawn = slots(start + number, live, lengths.draw(scores))[..., :-1]
    ends = layout.cumsum(drawn)
    inside = ends < layout.spread(layout.count(live))
    begins = slots(start + ends, inside, torch.ones_like(ends))[..., :-1]
    at_slot = begins.gather(-1, (start + number).clamp(0, layout.length - 1)).bool() | (number == 0)
    dead = (~live).gather(-1, head)
    after_dead = torch.nn.functional.pad(dead[..., :-1], (1, 0))
    return heads & (dead | at_slot | after_dead)


SELECTIONS = {"tokens": select_tokens, "words": select_words, "spans": select_spans, "ngrams": select_ngrams}
"""By the name that `MLM`, the collator and the command line know them by. Those of `OF_WORDS` take `words`."""

OF_WORDS = (select_words, select_ngrams)
