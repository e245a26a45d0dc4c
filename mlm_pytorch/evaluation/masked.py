"""Held-out loss and accuracy under fixed masks: the same positions for every model that is given the same pieces, which
takes the same tokenizer and the same longest piece."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.data.packing import Pack
from mlm_pytorch.evaluation.breakdown import Breakdown
from mlm_pytorch.masking import millionths
from mlm_pytorch.modes import evaluating
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_logits
from mlm_pytorch.tokens import SpecialTokens

CHUNK = 1 << 22  # logits whose log-normalisers are taken at a time
EVALUATION_SEED = 20_181_011  # of the masks, whatever the run's own seed


@dataclass(frozen=True)
class MaskedResult:
    """Masked loss over a corpus.

    Attributes:
        loss: nats per predicted token.
        accuracy: share of predicted tokens whose most likely candidate is the original.
        num_targets: predicted tokens.
        num_tokens: tokens read, special tokens included.
    """

    loss: float
    accuracy: float
    num_targets: int
    num_tokens: int


@torch.no_grad()
def masked_loss(
    model: nn.Module,
    packs: Iterable[Pack],
    special: SpecialTokens,
    *,
    mask_prob: float = 0.15,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    breakdown: Breakdown | None = None,
) -> MaskedResult:
    """Predict `mask_prob` of each piece's tokens, all shown as the mask token, at positions fixed once and for all.

    Args:
        model: takes flat packs (`Encoder`, `PaddedModel`); its training mode is restored.
        packs: of a held-out corpus. Memory does not grow with their number.
        special: what the vocabulary reserves.
        mask_prob: share of each piece's tokens to predict.
        device: where the model is. By default its parameters'.
        autocast: dtype of matrix products, or None for the parameters' own.
        progress: called with the tokens read so far.
        breakdown: counts the same by kind of token, for a twentieth of the time.

    Raises:
        ValueError: packs without a token to predict, or logits that are not finite.
    """
    device = device or next(model.parameters()).device
    masker = PackMasker(special, seed=EVALUATION_SEED)
    head = find_head(model)
    own = getattr(model, "logits_at", None)
    rate = millionths(mask_prob)
    with evaluating(model):
        loss_sum, num_correct, num_targets, num_tokens = 0.0, 0, 0, 0
        for pack in packs:
            masked = masker(pack, rate).to(device)
            num_tokens += masked.num_tokens
            if not masked.num_targets:
                continue
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = pack_logits(model, head, masked) if own is None else _own_logits(own, masked)
            losses, correct = target_losses(logits, masked.labels)
            pack_sum = float(losses.double().sum())
            if not math.isfinite(pack_sum):
                raise ValueError("the model's logits are not finite; it is damaged or did not train well")
            loss_sum += pack_sum
            num_correct += int(correct.sum())
            num_targets += masked.num_targets
            if breakdown is not None:
                breakdown.add(pack, masked, losses.cpu(), correct.cpu())
            if progress is not None:
                progress(num_tokens)
    if not num_targets:
        raise ValueError("the evaluation corpus holds no token to predict; give one with text")
    return MaskedResult(loss_sum / num_targets, num_correct / num_targets, num_targets, num_tokens)


def _own_logits(logits_at: Callable[..., Tensor], masked: MaskedPack) -> Tensor:
    layout = {"cu_seqlens": masked.cu_seqlens, "max_seqlen": masked.max_seqlen}
    return logits_at(masked.positions, masked.input_ids, **layout)


def target_losses(logits_KV: Tensor, labels_K: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (K,) in float32 of each label, and whether it is the likeliest (K,) bool.

    >>> target_losses(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([2]))[1]
    tensor([True])
    """
    rows = max(1, CHUNK // logits_KV.shape[1])
    losses = [
        F.cross_entropy(logits.float(), labels, reduction="none")
        for logits, labels in zip(logits_KV.split(rows), labels_K.split(rows), strict=True)
    ]
    return torch.cat(losses), logits_KV.argmax(-1) == labels_K


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """Masked loss in bits per byte of text, which compares models of different tokenizers better than nats per token.

    What each token costs where it is masked, times the tokens of the text (without framing), over its bytes in UTF-8.
    Not a compression rate: tokens are predicted from both sides.

    >>> round(bits_per_byte(math.log(2), num_tokens=10, num_bytes=40), 6)
    0.25
    """
    return loss * num_tokens / (num_bytes * math.log(2))
