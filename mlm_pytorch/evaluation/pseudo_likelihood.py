"""Pseudo-log-likelihood of sentences: each token's log probability when it is masked and the rest is seen, summed.

Two variants. "original" (Salazar et al. 2020, arXiv 1910.14659) masks the token alone. "word-l2r" (Kauf & Ivanova 2023,
arXiv 2305.10588) masks the later tokens of its word as well: otherwise a rare word cut into many tokens looks likely,
since each of them gives the others away.

Shapes: S sentences of one length, n tokens of each, L = n + framing columns, B masked rows, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation.rows import RowLogits, row_logits
from mlm_pytorch.masking.words import derive_words
from mlm_pytorch.modes import evaluating
from mlm_pytorch.tokens import SpecialTokens, WordTable

Variant = Literal["original", "word-l2r"]
BATCH_TOKENS = {"cpu": 6144, "cuda": 65_536}  # of one forward pass; more takes no less time a token


@dataclass(frozen=True, eq=False)
class SentenceScore:
    """How a model finds a sentence.

    Attributes:
        log_probs: (n,) float64, nats: the log probability of each token, special tokens not counted.
    """

    log_probs: np.ndarray

    @property
    def sum(self) -> float:
        """The pseudo-log-likelihood."""
        return float(self.log_probs.sum())

    @property
    def mean(self) -> float:
        """The same per token."""
        return float(self.log_probs.mean())


def pseudo_log_likelihood(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    variant: Variant = "original",
    max_seq_len: int | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[SentenceScore]:
    """Score sentences by the pseudo-log-likelihood of their tokens.

    A sentence of n tokens is n masked rows. Rows of one length are computed together, so that nothing is padded, and
    only the masked token of a row meets the vocabulary. Deterministic; in the parameters' own precision.

    Args:
        model: the built-in encoder, a `PaddedModel`, or any module that maps (B, L) ids to (B, L, V) logits; its
            training mode is restored.
        tokenizer: the model's. What a text says of special tokens ("[MASK]") is text to it.
        texts: sentences, each with a token at least.
        variant: what is masked with a token, see the module.
        max_seq_len: the longest sentence in tokens, special ones included.
        batch_tokens: tokens computed at a time, by default `BATCH_TOKENS` of the device.
        progress: called with the number of sentences done so far.

    Returns:
        One score per text, in order.

    Raises:
        ValueError: a text without tokens or longer than `max_seq_len`, an unknown variant, logits that are not
            finite, or "word-l2r" with a tokenizer whose ids do not show words.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant {variant!r} is unknown; choose {' or '.join(get_args(Variant))}")
    words = _words(tokenizer) if variant == "word-l2r" else None
    sentences = _encode(tokenizer, texts, max_seq_len)
    device = next(model.parameters()).device
    budget = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    logits_of_rows = row_logits(model)
    scores: list[SentenceScore | None] = [None] * len(texts)
    done = 0
    with torch.inference_mode(), evaluating(model):
        for indices in _of_one_length(sentences, budget, tokenizer.special):
            ids_Sn = torch.from_numpy(np.stack([sentences[i] for i in indices]))
            log_probs_Sn = _score(logits_of_rows, ids_Sn, tokenizer.special, words, budget, device)
            if not log_probs_Sn.isfinite().all():
                raise ValueError(
                    f"the model's logits for {texts[indices[0]]!r} are not finite; it is damaged or did not train well"
                )
            for index, log_probs_n in zip(indices, log_probs_Sn.double().numpy(), strict=True):
                scores[index] = SentenceScore(log_probs_n)
            done += len(indices)
            if progress is not None:
                progress(done)
    return [score for score in scores if score is not None]


def _words(tokenizer: Tokenizer) -> WordTable:
    try:
        return derive_words(tokenizer.backend)
    except ValueError as error:
        raise ValueError(f"word-l2r needs to know words, and {error}; choose the variant original") from None


def _encode(tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int | None) -> list[np.ndarray]:
    """The ids of each text, without framing."""
    framing = len(tokenizer.special.prefix) + len(tokenizer.special.suffix)
    sentences = [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch(texts)]
    for number, (ids, text) in enumerate(zip(sentences, texts, strict=True), 1):
        if not len(ids):
            raise ValueError(f"sentence {number} ({text!r}) has no tokens; leave it out")
        if max_seq_len is not None and len(ids) + framing > max_seq_len:
            raise ValueError(
                f"sentence {number} has {len(ids) + framing} tokens with its framing, more than the model's "
                f"{max_seq_len}; shorten it ({text[:40]!r}…)"
            )
    return sentences


def _of_one_length(sentences: Sequence[np.ndarray], budget: int, special: SpecialTokens) -> Iterator[list[int]]:
    """Indices of sentences of one length, as many as fill a batch with their masked rows; longest first."""
    lengths = np.array([len(ids) for ids in sentences])
    framing = len(special.prefix) + len(special.suffix)
    for length in np.unique(lengths)[::-1].tolist():
        indices = np.flatnonzero(lengths == length).tolist()
        count = max(1, round(budget / (length * (length + framing))))
        for start in range(0, len(indices), count):
            yield indices[start : start + count]


def _score(
    logits_of_rows: RowLogits,
    ids_Sn: Tensor,
    special: SpecialTokens,
    words: WordTable | None,
    budget: int,
    device: torch.device,
) -> Tensor:
    """Log probabilities (S, n) of the tokens of sentences of one length."""
    num_sentences, length = ids_Sn.shape
    prefix, suffix = (torch.tensor(ids).expand(num_sentences, -1) for ids in (special.prefix, special.suffix))
    framed_SL = torch.cat([prefix.long(), ids_Sn, suffix.long()], dim=1)
    hidden_Snn = _hidden(ids_Sn, words)
    rows_SnL = framed_SL[:, None].repeat(1, length, 1)
    content = rows_SnL[:, :, len(special.prefix) : len(special.prefix) + length]
    content.masked_fill_(hidden_Snn, special.mask_token_id)
    rows_BL = rows_SnL.flatten(0, 1)
    column_B = torch.arange(len(special.prefix), len(special.prefix) + length).repeat(num_sentences)
    target_B = ids_Sn.flatten()
    at_once = max(1, round(budget / rows_BL.shape[1]))
    parts = []
    for start in range(0, len(rows_BL), at_once):
        here = slice(start, start + at_once)
        logits_BV = logits_of_rows(rows_BL[here].to(device), column_B[here].to(device)).float()
        # Twice as fast as logsumexp, which passes over the logits four times.
        parts.append(-F.cross_entropy(logits_BV, target_B[here].to(device), reduction="none").cpu())
    return torch.cat(parts).view(num_sentences, length)


def _hidden(ids_Sn: Tensor, words: WordTable | None) -> Tensor:
    """Which tokens (last dimension) are masked while a token (second dimension) is scored: bool (S, n, n).

    >>> words = WordTable.from_starts([True, False])            # id 1 continues a word
    >>> _hidden(torch.tensor([[0, 1, 1]]), words).int().tolist()
    [[[1, 1, 1], [0, 1, 1], [0, 0, 1]]]
    """
    length = ids_Sn.shape[1]
    if words is None:
        return torch.eye(length, dtype=torch.bool).expand(len(ids_Sn), -1, -1)
    word_Sn = words.starts_word(ids_Sn).long().cumsum(1)
    same_word = word_Sn[:, :, None] == word_Sn[:, None, :]
    return same_word.triu()
