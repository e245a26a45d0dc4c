"""What may be wrong with what `MLM` is given, or gets back: each a sentence with the value, the rule and the remedy."""

# B batch, L length, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from mlm_pytorch.masking import millionths
from mlm_pytorch.tokens import IGNORE_INDEX


def check_shares(mask_prob: float, replace_prob: float, random_token_prob: float) -> None:
    """Raise ValueError for shares outside [0, 1], and for more random tokens than replaced ones."""
    for name, prob in (
        ("mask_prob", mask_prob),
        ("replace_prob", replace_prob),
        ("random_token_prob", random_token_prob),
    ):
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"{name} {prob} is outside [0, 1]; pass a share such as 0.15")
    if millionths(random_token_prob) > millionths(replace_prob):
        raise ValueError(
            f"random_token_prob {random_token_prob} exceeds replace_prob {replace_prob}, of which it is "
            "a part; lower it or raise replace_prob"
        )


def check_vocabulary(num_tokens: int | None, mask_token_id: int, pad_token_id: int, random_token_prob: float) -> None:
    """Raise ValueError for ids that contradict each other or the vocabulary, whose size may be unknown (None)."""
    if mask_token_id == pad_token_id:
        raise ValueError(
            f"mask_token_id and pad_token_id are both {pad_token_id}, so a mask would pass for padding; "
            "give one of them an id of its own"
        )
    if num_tokens is None:
        if random_token_prob:
            raise ValueError(
                f"random_token_prob {random_token_prob} needs to know the vocabulary, which this transformer "
                "does not tell; pass num_tokens"
            )
    elif not 0 <= mask_token_id < num_tokens:
        raise ValueError(
            f"mask_token_id {mask_token_id} is outside the vocabulary of num_tokens {num_tokens}; "
            "pass the id of a token that the model knows, or num_tokens= or head= where its vocabulary is another"
        )


def check_batch(seq: Tensor, labels: Tensor | None) -> None:
    """Raise ValueError where ids are no integers (B, L), or labels none of that shape. Looks at no values."""
    if not isinstance(seq, Tensor):
        raise ValueError(f"ids are of type {type(seq).__name__}; pass a tensor, such as torch.as_tensor(ids)")
    if seq.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids are {seq.dtype}; pass token ids as int64, such as seq.long()")
    if seq.dim() != 2:
        raise ValueError(f"ids have shape {tuple(seq.shape)}; pass (batch, length), such as seq.unsqueeze(0)")
    if labels is not None and labels.shape != seq.shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} differ in shape from ids {tuple(seq.shape)}; pass one label per id, "
            f"{IGNORE_INDEX} where there is nothing to predict"
        )
    if labels is not None and labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels are {labels.dtype}; pass token ids as int64, such as labels.long()")


def explain_ids(low: int, high: int, num_tokens: int | None, pad_token_id: int) -> str | None:
    """What is wrong with ids between `low` and `high`; None where nothing is."""
    if low < 0:
        return f"id {low} is negative; token ids start at 0 (pad with pad_token_id {pad_token_id})"
    if num_tokens is not None and high >= num_tokens:
        return (
            f"id {high} is outside the vocabulary of num_tokens {num_tokens}; use the tokenizer of this model, or "
            "pass num_tokens= or head= where its vocabulary is another"
        )
    return None


def explain_labels(low: int, high: int, num_tokens: int | None) -> str | None:
    """What is wrong with labels between `low` and `high`; None where nothing is."""
    if low >= 0 and (num_tokens is None or high < num_tokens):
        return None
    label, rule = low if low < 0 else high, f"is outside the vocabulary of num_tokens {num_tokens}"
    return f"label {label} {rule}; pass token ids, {IGNORE_INDEX} where there is nothing to predict"


def explain_logits(values: list[int]) -> str | None:
    """What is wrong with logits: whether some are not finite, and the first one's row and position; None otherwise."""
    is_bad, row, position = values
    if not is_bad:
        return None
    return (
        f"logits are NaN or infinite, first at row {row}, position {position}; "
        "look for a learning rate too high, or for a broken weight or input"
    )


def wrong_layout(transformer: str, logits: Tensor, input_ids: Tensor) -> ValueError:
    """Logits that are not (B, L, V)."""
    return ValueError(
        f"{transformer} returned logits {tuple(logits.shape)} for ids "
        f"{tuple(input_ids.shape)}; return one row of logits per id, (B, L, V)"
    )


def wrong_width(transformer: str, width: int, num_tokens: int) -> ValueError:
    """A head of another width than the vocabulary that was named."""
    return ValueError(
        f"the head of {transformer} gives {width} logits, but num_tokens is {num_tokens}; pass num_tokens={width} "
        "(and ids that stand for nothing as mask_ignore_token_ids), or the right module as head="
    )


def no_logit_for(transformer: str, width: int, highest: int) -> ValueError:
    """A label beyond the logits that there are."""
    return ValueError(
        f"{transformer} returned {width} logits per position, which has none for id "
        f"{highest}; return logits (B, L, V) over the whole vocabulary, not hidden states"
    )
