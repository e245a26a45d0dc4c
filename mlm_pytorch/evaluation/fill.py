"""Candidates for the masked positions of a text."""

from dataclasses import dataclass

import torch
from torch import nn

from mlm_pytorch.data.tokenizer import Tokenizer


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


def _without_blanks(tokenizer: Tokenizer, text: str, mask: str) -> str:
    """Drop the blank before each mask where a word's token brings its own: byte-level tokens do, and unless the mask
    token swallows the blank by itself (`lstrip`), it would be encoded twice."""
    added = tokenizer.backend.get_added_tokens_decoder()[tokenizer.special.mask_token_id]
    return text.replace(f" {mask}", mask) if tokenizer.brings_blanks and not added.lstrip else text


def _token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as a reader writes it: decoded, without the blank before it; its raw name where it decodes to nothing."""
    text = tokenizer.backend.decode([token_id]).strip()
    return text or tokenizer.backend.id_to_token(token_id) or f"[{token_id}]"


@torch.no_grad()
def fill(model: nn.Module, tokenizer: Tokenizer, text: str, top_k: int = 5) -> Filled:
    """The `top_k` most likely tokens for each mask in `text`.

    The mask is written `[MASK]` or as the tokenizer writes it. Special tokens are never candidates.

    Args:
        model: takes flat packs (`Encoder`).
        tokenizer: the model's.
        text: with at least one mask.
        top_k: candidates to list.

    Raises:
        ValueError: a text without a mask, too long for the model, or `top_k` below 1.
    """
    special = tokenizer.special
    if not 1 <= top_k <= special.num_tokens - len(special.ids):
        raise ValueError(
            f"--top-k {top_k} is outside 1 to {special.num_tokens - len(special.ids)}, the tokens there are"
        )
    mask = tokenizer.backend.id_to_token(special.mask_token_id)
    assert mask is not None
    ids = tokenizer.encode(_without_blanks(tokenizer, text.replace("[MASK]", mask), mask))
    where = [i for i, token in enumerate(ids) if token == special.mask_token_id]
    if not where:
        raise ValueError(f"no mask in {text!r}; write {mask} where a word is to be found")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    input_ids = torch.tensor(ids, device=device)
    logits = model(input_ids, cu_seqlens=torch.tensor([0, len(ids)], device=device), max_seqlen=len(ids))
    model.train(was_training)
    rows = logits[where].float()[:, : special.num_tokens].masked_fill(special.is_special(device), float("-inf"))
    probabilities, chosen = rows.softmax(-1).topk(top_k)
    masks = []
    for index, row, shares in zip(where, chosen.tolist(), probabilities.tolist(), strict=True):
        found = [Candidate(_token_text(tokenizer, i), i, share) for i, share in zip(row, shares, strict=True)]
        masks.append(MaskedPosition(index, tuple(found)))
    return Filled(text, tuple(masks))
