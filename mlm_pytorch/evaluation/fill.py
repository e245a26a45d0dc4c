"""Candidates for the masked positions of a text.

Shapes: K masked positions, V vocabulary.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.modes import evaluating
from mlm_pytorch.objective.head import find_head, logits_at
from mlm_pytorch.tokens import SpecialTokens


@dataclass(frozen=True)
class Candidate:
    """One token that may stand at a masked position, with the model's probability for it."""

    token: str
    id: int
    probability: float


@dataclass(frozen=True)
class MaskedPosition:
    """A masked position: its index among the text's tokens, special ones included, and what may stand there."""

    index: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Filled:
    """A text with its masked positions, in order."""

    text: str
    masks: tuple[MaskedPosition, ...]


def masks_understood(tokenizer: Tokenizer, text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text with "[MASK]" as the tokenizer itself writes it, and which characters of `text` each character came from.

    The blank before a mask is dropped where a word's token brings its own: byte-level tokens do, and unless the mask
    token swallows the blank by itself (`lstrip`), it would be encoded twice.

    Returns:
        The text to encode, and a span of `text` for each of its characters.

    Raises:
        ValueError: half of a character, which is what bytes that are not UTF-8 become on a command line.

    >>> masks_understood(roberta, "a [MASK]!")  # of which "<mask>" takes a single blank: that before it goes
    ("a<mask>!", [(0, 1), (2, 8), (2, 8), (2, 8), (2, 8), (2, 8), (2, 8), (8, 9)])
    """
    broken = next((i for i, char in enumerate(text) if 0xD800 <= ord(char) < 0xE000), None)
    if broken is not None:
        raise ValueError(f"the text is not Unicode (half a character at {broken + 1:,}); write it in UTF-8")
    mask = tokenizer.backend.id_to_token(tokenizer.special.mask_token_id)
    assert mask is not None
    added = tokenizer.backend.get_added_tokens_decoder()[tokenizer.special.mask_token_id]
    drops_blank = tokenizer.brings_blanks and not added.lstrip
    parts, spans, done = [], [], 0
    for found in re.finditer(rf"\[MASK\]|{re.escape(mask)}", text):
        end = found.start() - (drops_blank and text[done : found.start()].endswith(" "))
        parts += [text[done:end], mask]
        spans += [(i, i + 1) for i in range(done, end)] + [found.span()] * len(mask)
        done = found.end()
    return "".join([*parts, text[done:]]), spans + [(i, i + 1) for i in range(done, len(text))]


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as a reader writes it: decoded, without the blank before it; its raw name where that is nothing, or but a
    part of a character."""
    text = _decoded(tokenizer, token_id).strip()
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else _raw_name(tokenizer, token_id)


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token by itself, told apart from all others: its text; white space as signs; and where a blank tells the start
    of a word from the rest of one, the rest of a word with an ellipsis before it.

    >>> [token_name(bpe, bpe.backend.token_to_id(raw)) for raw in ("Ġthe", "the", "Ċ")]
    ['the', '…the', '⏎']
    """
    decoded = _decoded(tokenizer, token_id)
    if decoded and not decoded.strip():
        return visible(decoded)
    text = token_text(tokenizer, token_id)
    is_whole = "\N{REPLACEMENT CHARACTER}" not in decoded
    continues = tokenizer.brings_blanks and is_whole and decoded and not decoded[0].isspace() and text[0].isalnum()
    return f"…{text}" if continues else text


def names_apart(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Tokens as a reader writes them; those of which two would look alike, by names that tell them apart.

    >>> names_apart(bpe, [bpe.backend.token_to_id(raw) for raw in ("the", "a")])
    ['the', 'a']
    >>> names_apart(bpe, [bpe.backend.token_to_id(raw) for raw in ("the", "Ġthe")])
    ['…the', 'the']
    """
    texts = [token_text(tokenizer, token_id) for token_id in token_ids]
    often = Counter(dict(zip(token_ids, texts, strict=True)).values())  # a token that comes twice is no other one
    return [
        token_name(tokenizer, token_id) if often[text] > 1 else text
        for token_id, text in zip(token_ids, texts, strict=True)
    ]


def _decoded(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.backend.decode([token_id], skip_special_tokens=False)


def _raw_name(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.backend.id_to_token(token_id) or f"[{token_id}]"


def visible(text: str) -> str:
    r"""White space as signs that can be seen.

    >>> visible(" \n")
    '␣⏎'
    """
    signs = {code: chr(0x2400 + code) for code in range(32)} | {ord("\n"): "⏎", ord("\t"): "⇥"}
    return "".join(signs.get(ord(char), "␣") for char in text) or "∅"


@torch.inference_mode()
def masked_probabilities(model: nn.Module, special: SpecialTokens, ids: Sequence[int], where: Sequence[int]) -> Tensor:
    """What a model finds likely at positions `where` of one framed piece: (K, V) float32, rows that sum to 1.

    Special tokens have probability 0. Only these positions meet the vocabulary, so memory does not grow with the text.

    Args:
        model: takes flat packs (`Encoder`, `PaddedModel`); its training mode is restored.
        special: what the vocabulary reserves.
        ids: the piece, framing included, with mask tokens at `where`.
        where: K indices into `ids`.

    Raises:
        ValueError: a piece too long for the model, or logits that are not finite.
    """
    device = next(model.parameters()).device
    input_ids = torch.tensor(ids, device=device)
    positions = torch.tensor(where, device=device)
    layout = {"cu_seqlens": torch.tensor([0, len(ids)], device=device), "max_seqlen": len(ids)}
    with evaluating(model):
        own, head = getattr(model, "logits_at", None), find_head(model)
        if own is not None:
            logits_KV = own(positions, input_ids, **layout)
        elif head is not None:
            logits_KV = logits_at(model, head, positions, input_ids, **layout)
        else:
            logits_KV = model(input_ids, **layout)[positions]
    logits_KV = logits_KV[:, : special.num_tokens].float()
    if not logits_KV.isfinite().all():
        raise ValueError("the model's logits are not finite; it is damaged or did not train well")
    return logits_KV.masked_fill(special.is_special(device), float("-inf")).softmax(-1)


def likeliest(tokenizer: Tokenizer, probabilities_KV: Tensor, top_k: int) -> list[tuple[Candidate, ...]]:
    """The `top_k` candidates of each row, likeliest first."""
    probabilities, chosen = probabilities_KV.topk(top_k)
    return [
        tuple(Candidate(token_text(tokenizer, i), i, share) for i, share in zip(row, shares, strict=True))
        for row, shares in zip(chosen.tolist(), probabilities.tolist(), strict=True)
    ]


def fill(model: nn.Module, tokenizer: Tokenizer, text: str, top_k: int = 5) -> Filled:
    """The `top_k` most likely tokens for each mask in `text`.

    The mask is written `[MASK]` or as the tokenizer writes it. Special tokens are never candidates.

    Args:
        model: takes flat packs (`Encoder`).
        tokenizer: the model's.
        text: with at least one mask.
        top_k: candidates to list.

    Raises:
        ValueError: a text without a mask, too long for the model, or not Unicode; `top_k` below 1.
    """
    special = tokenizer.special
    if not 1 <= top_k <= special.num_tokens - len(special.ids):
        raise ValueError(
            f"--top-k {top_k} is outside 1 to {special.num_tokens - len(special.ids)}, the tokens there are"
        )
    ids = tokenizer.encode(masks_understood(tokenizer, text)[0])
    where = [i for i, token in enumerate(ids) if token == special.mask_token_id]
    if not where:
        mask = tokenizer.backend.id_to_token(special.mask_token_id)
        raise ValueError(f"no mask in {text!r}; write {mask} where a word is to be found")
    found = likeliest(tokenizer, masked_probabilities(model, special, ids, where), top_k)
    return Filled(text, tuple(MaskedPosition(i, candidates) for i, candidates in zip(where, found, strict=True)))
