"""What models make of a text, word by word: what they would put in place of hidden words, how surprising each one is.

Shapes: R masked rows, L tokens of the framed text, K masked positions, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from tokenizers.models import WordLevel

from mlm_pytorch.cli.models import OpenedModel
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation.fill import Candidate, likeliest, masked_probabilities, masks_understood, token_text
from mlm_pytorch.evaluation.pseudo_likelihood import BATCH_TOKENS
from mlm_pytorch.evaluation.rows import row_logits
from mlm_pytorch.modes import evaluating
from mlm_pytorch.play.words import Span, trim, words_of

Kind = Literal["word", "mask", "unknown", "bare"]
LONGEST_WINDOW = 512  # tokens that a word's surprise looks at; without a bound, time grows with the square of the text
NUM_EXPECTED = 3  # candidates named beside a word's surprise


@dataclass(frozen=True)
class Reading:
    """A text as one model reads it.

    Attributes:
        opened: the model.
        ids: its tokens, framing not included.
        tokens: for each word, the indices into `ids` of its tokens: a range.
        kinds: for each word, what can be asked of it: "word", anything; "mask" is hidden by who wrote the text;
            "unknown" holds a token that stands for whatever the vocabulary lacks; "bare" has no token at all.
    """

    opened: OpenedModel
    ids: tuple[int, ...]
    tokens: tuple[range, ...]
    kinds: tuple[Kind, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens, framing included."""
        special = self.opened.tokenizer.special
        return len(special.prefix) + len(self.ids) + len(special.suffix)

    @property
    def window(self) -> int:
        """Tokens that a word's surprise looks at, framing not included: all, or as many as the model was trained at."""
        special = self.opened.tokenizer.special
        longest = min(self.opened.seq_len, LONGEST_WINDOW) - len(special.prefix) - len(special.suffix)
        return min(len(self.ids), max(1, longest))

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Tokens between what the tokenizer puts around a piece."""
        special = self.opened.tokenizer.special
        return [*special.prefix, *ids, *special.suffix]

    def pieces(self, word: int) -> list[str]:
        """A word's tokens, as a reader would write them."""
        return [token_text(self.opened.tokenizer, self.ids[i]) for i in self.tokens[word]]


@dataclass(frozen=True)
class Slot:
    """One mask token that stands for a word, or for a part of it.

    Attributes:
        candidates: likeliest first.
        written: the token that the text has here, and its rank (from 1); None where the number of mask tokens was
            chosen, so that none of them stands for a certain token.
    """

    candidates: tuple[Candidate, ...]
    written: Candidate | None
    rank: int | None


@dataclass(frozen=True)
class Surprise:
    """How surprising a word is where it stands.

    Attributes:
        word: its number.
        nats: -log of its probability when it is hidden and all else is seen.
        expected: the likeliest first tokens in its place.
    """

    word: int
    nats: float
    expected: tuple[Candidate, ...]


def read(text: str, models: Sequence[OpenedModel]) -> tuple[list[Span], list[Reading]]:
    """A text's words, and how each model reads them.

    "[MASK]", or a mask as a model's own tokenizer writes it, is a mask. Where a text has one, other special tokens
    that it names are understood as well, as `fill` does; else they are text.

    Raises:
        ValueError: no Unicode, more tokens than a model takes, or words that a tokenizer cannot express.
    """
    encoded = []
    for opened in models:
        tokenizer = opened.tokenizer
        written, origin = masks_understood(tokenizer, text)
        mask = tokenizer.backend.id_to_token(tokenizer.special.mask_token_id)
        assert mask is not None
        ids, spans = tokenizer.encode_spans(written, understood=mask in written)
        num_tokens = len(ids) + len(tokenizer.special.prefix) + len(tokenizer.special.suffix)
        if num_tokens > opened.max_seq_len:
            raise ValueError(
                f"the text has {num_tokens:,} tokens for {opened.folder}, which takes {opened.max_seq_len:,}; "
                "shorten it"
            )
        encoded.append((ids, [_in_text(origin, span) for span in spans]))
    by_token = not any(_knows_words(opened.tokenizer) for opened in models)
    words = words_of(text, [spans for _, spans in encoded], by_token=by_token)
    readings = []
    for opened, (ids, spans) in zip(models, encoded, strict=True):
        tokens = _tokens_of_words(words, [trim(text, span) for span in spans])
        readings.append(Reading(opened, tuple(ids), tokens, tuple(_kind(opened, [ids[i] for i in t]) for t in tokens)))
    return words, readings


def _knows_words(tokenizer: Tokenizer) -> bool:
    """Whether a word is anything to this tokenizer; to those of proteins and k-mers there are tokens only."""
    backend = tokenizer.backend
    return backend.pre_tokenizer is not None and not isinstance(backend.model, WordLevel)


def _in_text(origin: Sequence[Span], span: Span) -> Span:
    """A span of the text with its masks rewritten, in the text as it was."""
    start, end = span
    return (origin[start][0], origin[end - 1][1]) if start < end else (0, 0)


def _tokens_of_words(words: Sequence[Span], spans: Sequence[Span | None]) -> tuple[range, ...]:
    """For each word its tokens. A token of blanks is nobody's."""
    ranges, token = [], 0
    for _, end in words:
        first = None
        last = token
        while token < len(spans):
            span = spans[token]
            if span is not None and span[0] >= end:
                break
            if span is not None:
                first = token if first is None else first
                last = token + 1
            token += 1
        ranges.append(range(last if first is None else first, last))
    return tuple(ranges)


def _kind(opened: OpenedModel, ids: Sequence[int]) -> Kind:
    special = opened.tokenizer.special
    if not ids:
        return "bare"
    if special.mask_token_id in ids:
        return "mask"
    return "unknown" if opened.tokenizer.unknown_id in ids or set(ids) & set(special.ids) else "word"


# -- candidates --------------------------------------------------------------------------------------------------------


def candidates(reading: Reading, masks: Mapping[int, int | None], top_k: int) -> dict[int, tuple[Slot, ...]]:
    """What the model would put in place of words, all hidden at once.

    Args:
        reading: of the text.
        masks: words to hide, and by how many mask tokens; None takes as many as the word has. Words that are masks in
            the text are hidden anyhow; those that have no token cannot be.
        top_k: candidates of each mask token; fewer where the vocabulary has fewer.

    Raises:
        ValueError: more tokens than the model takes, or logits that are not finite.
    """
    opened, special = reading.opened, reading.opened.tokenizer.special
    hidden = {word: masks.get(word) for word, kind in enumerate(reading.kinds) if kind == "mask"}
    hidden |= {word: count for word, count in masks.items() if reading.kinds[word] not in ("mask", "bare")}
    ids: list[int] = []
    written: list[int | None] = []
    slots: dict[int, range] = {}
    where: list[int] = []
    done = 0
    for word in sorted(hidden):
        own, count = reading.tokens[word], hidden[word]
        ids += reading.ids[done : own.start]
        truths = list(reading.ids[own.start : own.stop]) if count is None and reading.kinds[word] != "mask" else None
        size = count or len(own)
        slots[word] = range(len(where), len(where) + size)
        where += range(len(special.prefix) + len(ids), len(special.prefix) + len(ids) + size)
        written += truths or [None] * size
        ids += [special.mask_token_id] * size
        done = own.stop
    if not where:
        return {}
    framed = reading.framed([*ids, *reading.ids[done:]])
    if len(framed) > opened.max_seq_len:
        raise ValueError(
            f"the text has {len(framed):,} tokens for {opened.folder} with these masks, which takes "
            f"{opened.max_seq_len:,}; hide fewer words or shorten it"
        )
    probabilities_KV = masked_probabilities(opened.model, special, framed, where)
    top = likeliest(opened.tokenizer, probabilities_KV, min(top_k, special.num_tokens - len(special.ids)))
    found = []
    for row, best, truth in zip(probabilities_KV, top, written, strict=True):
        if truth is None or truth in special.ids:
            found.append(Slot(best, None, None))
            continue
        share = float(row[truth])
        rank = int((row > share).sum()) + 1
        found.append(Slot(best, Candidate(token_text(opened.tokenizer, truth), truth, share), rank))
    return {word: tuple(found[i] for i in own) for word, own in slots.items()}


# -- surprise ----------------------------------------------------------------------------------------------------------


def surprise_batches(reading: Reading) -> Iterator[list[tuple[int, int]]]:
    """The rows that `surprise` computes at a time: (word, token of it), in order, as many as one forward pass takes."""
    device = next(reading.opened.model.parameters()).device
    rows = ((w, i) for w, kind in enumerate(reading.kinds) if kind == "word" for i in reading.tokens[w])
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    at_once = max(1, budget // len(reading.framed(range(reading.window))))
    while batch := list(islice(rows, at_once)):
        yield batch


@torch.inference_mode()
def token_surprises(
    reading: Reading, rows: Sequence[tuple[int, int]]
) -> list[tuple[int, int, float, tuple[Candidate, ...]]]:
    """-log p of single tokens, each with itself and the later tokens of its word hidden: `pseudo_likelihood`'s
    "word-l2r", so that a word's sum is the -log p of the whole word, however many tokens it has. In a text longer than
    `reading.window`, that many tokens around each are seen, framed like a piece of a document.

    Args:
        reading: of the text.
        rows: (word, index into `reading.ids`), from `surprise_batches`.

    Returns:
        For each row: word, index, nats, and what was expected.

    Raises:
        ValueError: logits that are not finite.
    """
    opened, special = reading.opened, reading.opened.tokenizer.special
    model, shift = opened.model, len(special.prefix)
    device = next(model.parameters()).device
    window, last = reading.window, len(reading.ids) - reading.window
    starts = [min(max(0, index - window // 2), last) for _, index in rows]
    ids_RL = torch.tensor([reading.framed(reading.ids[start : start + window]) for start in starts])
    for row, start, (word, index) in zip(ids_RL, starts, rows, strict=True):
        stop = min(reading.tokens[word].stop, start + window)
        row[shift + index - start : shift + stop - start] = special.mask_token_id
    column_R = torch.tensor([shift + index - start for start, (_, index) in zip(starts, rows, strict=True)])
    target_R = torch.tensor([reading.ids[index] for _, index in rows], device=device)
    with evaluating(model):
        logits_RV = row_logits(model)(ids_RL.to(device), column_R.to(device)).float()
    nats_R = (logits_RV.logsumexp(1) - logits_RV.gather(1, target_R[:, None]).squeeze(1)).tolist()
    if not all(map(math.isfinite, nats_R)):
        raise ValueError(f"the logits of {opened.folder} are not finite; it is damaged or did not train well")
    content_RV = logits_RV[:, : special.num_tokens].masked_fill(special.is_special(device), float("-inf"))
    expected = likeliest(
        opened.tokenizer, content_RV.softmax(-1), min(NUM_EXPECTED, special.num_tokens - len(special.ids))
    )
    return [(word, index, nats, top) for (word, index), nats, top in zip(rows, nats_R, expected, strict=True)]


class SurpriseSum:
    """Tokens' surprises, summed to words as they come in order.

    >>> total = SurpriseSum(reading)
    >>> [done for batch in surprise_batches(reading) for done in total.add(token_surprises(reading, batch))]
    [Surprise(word=0, nats=3.2, expected=(…)), …]
    """

    def __init__(self, reading: Reading):
        self._reading = reading
        self._nats = 0.0
        self._expected: tuple[Candidate, ...] = ()

    def add(self, tokens: Sequence[tuple[int, int, float, tuple[Candidate, ...]]]) -> list[Surprise]:
        """The words that are complete with these tokens."""
        complete = []
        for word, index, nats, expected in tokens:
            own = self._reading.tokens[word]
            if index == own.start:
                self._nats, self._expected = 0.0, expected
            self._nats += nats
            if index == own.stop - 1:
                complete.append(Surprise(word, self._nats, self._expected))
        return complete
