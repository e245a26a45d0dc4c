"""`MLM`: masked language modelling around any transformer."""

# B batch, L length, K selected positions, V vocabulary

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch import masking
from mlm_pytorch.masking import Corrupted, RateSchedule, corrupt, draw_scores, mask_rate
from mlm_pytorch.objective.checks import LateCheck
from mlm_pytorch.objective.head import (
    Head,
    bare_module,
    find_head,
    head_width,
    logits_at,
    logits_of,
    name_of,
    seen_from_outside,
)
from mlm_pytorch.objective.loss import cross_entropy
from mlm_pytorch.objective.mistakes import (
    check_batch,
    check_shares,
    check_vocabulary,
    explain_ids,
    explain_labels,
    explain_logits,
    no_logit_for,
    wrong_layout,
    wrong_width,
)
from mlm_pytorch.objective.padded import check_pad_token, known_pad_mask_argument, requires, sees_padding
from mlm_pytorch.objective.verify import MIN_TOKENS, SHAPE_ERRORS, Verdict, verify_head
from mlm_pytorch.tokens import IGNORE_INDEX, WordTable

Selection = Callable[..., Tensor]


@dataclass(frozen=True)
class MLMOutput:
    """What one call of `MLM` found out.

    loss: scalar, `loss_sum / num_targets`; 0 where there are no targets.
    loss_sum, num_targets: what to add up over micro-batches and ranks.
    accuracy: scalar, the share of targets whose original token has the largest logit.
    positions: (K,) int64, the targets as indices into the flattened (B * L) batch.
    labels: (K,) int64, the original tokens there. logits: (K, V), the model's say.
    """

    loss: Tensor
    loss_sum: Tensor
    num_targets: Tensor
    accuracy: Tensor
    positions: Tensor
    labels: Tensor
    logits: Tensor


class MLM(nn.Module):
    """Masked language modelling (Devlin et al. 2019, §3.1) around a transformer of yours.

    Calling it with token ids (B, L) masks some of them, runs the transformer, and returns the loss at the masked
    positions; the transformer's vocabulary projection runs at these positions alone, wherever a check at the first call
    finds that this changes nothing. Randomness comes from torch's generator.

    Args:
        transformer: ids (B, L) -> logits (B, L, V), or an object with `.logits`.
        mask_prob: the share of maskable tokens to select, exactly ceil(share * count) per row; or a `RateSchedule` or
            any other function of `mlm.progress`, which you set between 0 and 1 as training goes on.
        replace_prob: among the selected, the share not shown as it is.
        num_tokens: the vocabulary's size V; derived from the transformer's head where that tells it.
        random_token_prob: among the selected, the share shown as a random token. BERT's 80/10/10 is
            `replace_prob=0.9, random_token_prob=0.1`.
        mask_token_id, pad_token_id: never selected, overwritten or drawn. The configuration of a Hugging Face model
            names a padding id too, which has to be the same.
        mask_ignore_token_ids: nor these, such as [CLS] and [SEP].
        selection: "tokens", "words", "spans", "ngrams", or a function with the arguments of `masking.select_tokens`.
        words: the vocabulary's `WordTable`, for selections of whole words.
        head: the module of the transformer (or its dotted name) that makes logits of hidden states, where it is not
            found by itself. Positions are gathered before it.
        dense: run the head at every position, without any check.
        pad_mask_argument: the transformer's argument that takes a mask, True at tokens and False at padding. Known for
            Hugging Face models (`attention_mask`) and x-transformers (`mask`); elsewhere nothing is passed without it.
            One that is True at padding, as torch's `key_padding_mask`, you pass: `mlm(ids, key_padding_mask=ids == 0)`.
        z_loss: weight of the squared log-normaliser in the loss; 1e-4 keeps logits from drifting.

    Raises:
        ValueError: for settings that contradict each other or the transformer.

    Example:
        >>> transformer = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 100))
        >>> mlm = MLM(transformer, mask_token_id=2, pad_token_id=0)
        >>> loss = mlm(torch.randint(3, 100, (2, 32)))
        >>> loss.backward()
    """

    _special_ids: Tensor
    _drawable_ids: Tensor | None

    def __init__(
        self,
        transformer: nn.Module,
        mask_prob: float | RateSchedule | Callable[[float], float] = 0.15,
        replace_prob: float = 0.9,
        num_tokens: int | None = None,
        random_token_prob: float = 0.0,
        mask_token_id: int = 2,
        pad_token_id: int = 0,
        mask_ignore_token_ids: Iterable[int] = (),
        *,
        selection: str | Selection = "tokens",
        words: WordTable | None = None,
        head: Head | None = None,
        dense: bool = False,
        pad_mask_argument: str | None = None,
        z_loss: float = 0.0,
    ):
        super().__init__()
        if isinstance(bare_module(transformer), nn.DataParallel):
            raise ValueError(
                "DataParallel cuts the batch behind the loss's back, so targets would not meet their positions; wrap "
                "the transformer in DistributedDataParallel, one process for each GPU"
            )
        self.transformer = transformer
        self.mask_prob, self.replace_prob, self.random_token_prob = mask_prob, replace_prob, random_token_prob
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
        self.mask_ignore_token_ids = {*mask_ignore_token_ids, pad_token_id}
        self.z_loss = z_loss
        self.progress = 0.0
        self.pad_mask_argument = pad_mask_argument or known_pad_mask_argument(bare_module(transformer))
        self._trusts_mask = pad_mask_argument is None  # else it is tried on the first batch with padding

        bare = bare_module(transformer)
        self._head_name = None if head is None else name_of(bare, head)
        self._verdict = Verdict(None) if dense else None
        self.num_tokens = num_tokens
        self._width = _vocabulary(bare, self._head_name, num_tokens)
        rate = mask_prob if not callable(mask_prob) else mask_rate(mask_prob, 0.0) / 1_000_000
        check_shares(rate, replace_prob, random_token_prob)
        check_vocabulary(self._width, mask_token_id, pad_token_id, random_token_prob)
        check_pad_token(bare, self.pad_mask_argument, pad_token_id)
        self._select, self._words = _selection(selection, words), words

        special = torch.tensor(sorted({*self.mask_ignore_token_ids, mask_token_id}))
        self.register_buffer("_special_ids", special, persistent=False)
        self.register_buffer("_drawable_ids", self._drawable(special), persistent=False)
        self._check_ids, self._check_labels = LateCheck(self._explain_ids), LateCheck(self._explain_labels)
        self._check_logits = LateCheck(explain_logits)

    def forward(
        self, seq: Tensor, labels: Tensor | None = None, return_output: bool = False, **kwargs: Any
    ) -> Tensor | MLMOutput:
        """The loss of masked language modelling.

        Args:
            seq: (B, L) int64 token ids.
            labels: (B, L) int64; given, `seq` is taken as corrupted already, and the loss is over the positions whose
                label is neither `IGNORE_INDEX` nor padding.
            return_output: return an `MLMOutput` instead of the loss alone.
            kwargs: passed on to the transformer.

        Returns:
            A float32 scalar with a gradient path; 0 where nothing could be masked.

        Raises:
            ValueError: for ids or labels that are no (B, L) integers or lie outside the vocabulary, a transformer that
                returns no logits, a head of another width, and logits that are not finite (on CUDA seen one call late,
                except at the first).
        """
        check_batch(seq, labels)
        if seq.numel() and not torch.compiler.is_compiling():
            self._check_ids(torch.stack(tuple(seq.aminmax())))
        corrupted = self.corrupt(seq) if labels is None else self._as_corrupted(seq, labels)
        positions_K = self._positions(corrupted.selected, exact=labels is not None or return_output)
        labels_K = corrupted.labels.flatten().index_select(0, positions_K).long()

        logits_KV = self._logits_at(positions_K, corrupted.input_ids, self._with_pad_mask(seq, kwargs))
        self._check_width(logits_KV.shape[-1], labels_K)
        if not self._trusts_mask:
            _eagerly(self._try_mask)(seq, kwargs)
        loss_sum, num_targets = cross_entropy(logits_KV, labels_K, z_loss=self.z_loss)
        loss = loss_sum / num_targets.clamp(min=1)

        self._check_finite(loss, logits_KV, labels_K, positions_K, seq.shape[1])
        if not return_output:
            return loss
        accuracy = (logits_KV.argmax(-1) == labels_K).sum() / num_targets.clamp(min=1)
        return MLMOutput(loss, loss_sum, num_targets, accuracy, positions_K, labels_K, logits_KV)

    def corrupt(self, seq: Tensor) -> Corrupted:
        """Select and replace tokens of `seq` (B, L), as a call would; what the model sees, and the labels."""
        scores = draw_scores(seq)
        maskable = ~torch.isin(seq, self._special_ids)
        words = {}
        if self._words is not None:
            self._words = self._words.to(seq.device)
            words["words"] = self._words
        selected = self._select(scores, seq, maskable, mask_rate(self.mask_prob, self.progress), **words)
        return corrupt(
            seq,
            selected,
            scores,
            mask_token_id=self.mask_token_id,
            replace_prob=self.replace_prob,
            random_token_prob=self.random_token_prob,
            drawable_ids=self._drawable_ids,
        )

    def verify(self, seq: Tensor, **kwargs: Any) -> Verdict:
        """Check where the transformer lets selected positions through alone; the first call does it by itself.

        Call it before parameters are sharded (FSDP), which the check can't see through. Warns where the answer is
        nowhere; every position then meets the vocabulary, as slow and as right as without us.
        """
        verdict = self._examine(seq, **self._with_pad_mask(seq, kwargs))
        self._settle(verdict)
        return verdict

    def _examine(self, seq: Tensor, **kwargs: Any) -> Verdict:
        try:
            return verify_head(
                bare_module(self.transformer),
                seq,
                kwargs,
                head=self._head_name,
                num_tokens=self._width,
                pad_token_id=self.pad_token_id,
            )
        except SHAPE_ERRORS as error:  # the model itself fails here; where it is the user's, its own call will say so
            return Verdict(None, f"the check failed ({type(error).__name__}: {error})")

    def _settle(self, verdict: Verdict) -> None:
        if verdict.head is None:
            warnings.warn(
                f"every position of {self._name} passes through its output head, which is "
                f"slow: {verdict.reason}; name another module as head=, or say dense=True",
                stacklevel=3,
            )
        for oddity in verdict.oddities:
            warnings.warn(oddity, stacklevel=3)
        self._verdict = verdict

    @property
    def _name(self) -> str:
        return type(bare_module(self.transformer)).__name__

    def _logits_at(self, positions_K: Tensor, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        verdict = self._verdict
        if verdict is None and input_ids.numel() >= MIN_TOKENS:
            verdict = _eagerly(self._examine)(input_ids, **kwargs)
        if verdict is not None and verdict.head is not None:
            where = (seen_from_outside(self.transformer, verdict.head), positions_K)
            logits = _eagerly(logits_at)(self.transformer, *where, input_ids, **kwargs)
        else:
            logits = logits_of(self.transformer(input_ids, **kwargs), self.transformer)
            if logits.shape[:-1] != input_ids.shape:
                raise wrong_layout(type(self.transformer).__name__, logits, input_ids)
            logits = logits.flatten(0, 1)
        if verdict is not None and self._verdict is None:  # not before the transformer has run: its own error says more
            _eagerly(self._settle)(verdict)
        if logits.shape[0] == input_ids.numel():  # dense, or a compiled transformer that did not see our hook
            logits = logits.index_select(0, positions_K)
        return logits

    def _positions(self, selected: Tensor, *, exact: bool) -> Tensor:
        """(K,) flattened indices of the selected positions. On CUDA, K is bounded without asking the device."""
        flat = selected.flatten()
        on_host = selected.device.type == "cpu" and not torch.compiler.is_compiling()
        if exact or on_host or self._select is not masking.select_tokens:
            return flat.nonzero().squeeze(1)
        rows, length = selected.shape
        bound = masking.max_selected([length] * rows, mask_rate(self.mask_prob, self.progress))
        if bound == flat.numel():  # in order: that many logits pass for dense ones, which are indexed by these
            return torch.arange(bound, device=selected.device)
        return flat.to(torch.uint8).argsort(descending=True, stable=True)[:bound]  # spare slots hold no label

    def _with_pad_mask(self, seq: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        name = self.pad_mask_argument
        if name is None or name in kwargs:
            return kwargs
        is_token = seq != self.pad_token_id
        can_tell = seq.device.type == "cpu" and not torch.compiler.is_compiling()
        if can_tell and bool(is_token.all()) and not requires(bare_module(self.transformer), name):
            return kwargs
        is_token = is_token | ~is_token.any(dim=-1, keepdim=True)  # a row without tokens must not become NaN
        return {**kwargs, name: is_token.long() if name == "attention_mask" else is_token}

    def _try_mask(self, seq: Tensor, kwargs: dict[str, Any]) -> None:
        name, is_token = self.pad_mask_argument, seq != self.pad_token_id
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if name in kwargs or not alone or bool(is_token.all()) or not bool(is_token.any(dim=-1).all()):
            return  # other processes may have no padding, and a sharded transformer would wait for them
        self._trusts_mask = True
        if sees_padding(bare_module(self.transformer), seq, is_token, self._with_pad_mask(seq, kwargs)):
            warnings.warn(
                f"{self._name} sees padding in spite of {name}=, which is True at tokens; "
                f"where it is True at padding, as torch's key_padding_mask, pass it yourself: mlm(ids, {name}=ids == "
                f"{self.pad_token_id})",
                stacklevel=2,
            )

    def _as_corrupted(self, seq: Tensor, labels: Tensor) -> Corrupted:
        labels = labels.long().masked_fill(labels == self.pad_token_id, IGNORE_INDEX)
        selected = labels != IGNORE_INDEX
        if labels.numel() and not torch.compiler.is_compiling():
            self._check_labels(torch.stack(labels.masked_fill(~selected, 0).aminmax()))
        return Corrupted(seq, labels, selected)

    def _drawable(self, special: Tensor) -> Tensor | None:
        if not self.random_token_prob:
            return None
        assert self._width is not None
        ids = torch.arange(self._width)
        return ids[~torch.isin(ids, special)]

    def _check_width(self, width: int, labels_K: Tensor) -> None:
        if width == self._width:
            return
        if self._width is not None and (self.num_tokens is not None or self.random_token_prob):
            raise wrong_width(self._name, width, self._width)
        if not torch.compiler.is_compiling() and labels_K.numel() and (highest := int(labels_K.max())) >= width:
            raise no_logit_for(self._name, width, highest)
        self._width = width  # what the head looked like was wrong, or told nothing

    def _explain_ids(self, extremes: list[int]) -> str | None:
        low, high = extremes
        return explain_ids(low, high, self._width, self.pad_token_id)

    def _explain_labels(self, extremes: list[int]) -> str | None:
        low, high = extremes
        return explain_labels(low, high, self._width)

    def _check_finite(
        self, loss: Tensor, logits_KV: Tensor, labels_K: Tensor, positions_K: Tensor, length: int
    ) -> None:
        if torch.compiler.is_compiling() or logits_KV.numel() == 0:
            return
        if loss.device.type == "cpu" and bool(loss.isfinite()):  # elsewhere, looking at the loss would wait for it
            return
        is_bad_K = ~logits_KV.detach().amax(-1).isfinite() & (labels_K != IGNORE_INDEX)
        first = positions_K[is_bad_K.to(torch.uint8).argmax()]
        self._check_logits(torch.stack((is_bad_K.any().long(), first // length, first % length)))


def _eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Out of the compiler's sight, where one is at work: a decorator would load it, for a second, into every import."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def _selection(selection: str | Selection, words: WordTable | None) -> Selection:
    """The function that selects. Raises ValueError for unknown names, and for words without a table."""
    named = masking.SELECTIONS
    if isinstance(selection, str) and selection not in named:
        raise ValueError(f"selection {selection!r} is unknown; choose {', '.join(named)}, or pass a function")
    function = named[selection] if isinstance(selection, str) else selection
    if function in masking.OF_WORDS and words is None:
        raise ValueError(f"selection {selection!r} needs to know where words begin; pass words=derive_words(tokenizer)")
    if function is masking.select_tokens and words is not None:
        raise ValueError("selection 'tokens' has no use for words; drop them, or pass selection='words'")
    return function


def _vocabulary(transformer: nn.Module, head: str | None, num_tokens: int | None) -> int | None:
    """The vocabulary's size, told by the user or by the head. Raises ValueError where these differ."""
    found = head if head is not None else find_head(transformer, num_tokens)
    width = head_width(transformer, found)
    if num_tokens is not None and width is not None and width != num_tokens:
        raise wrong_width(type(transformer).__name__, width, num_tokens)
    return num_tokens if num_tokens is not None else width
