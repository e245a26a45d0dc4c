"""Held-out loss and accuracy under fixed masks: the same positions for every model with the same tokenizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mlm_pytorch.data.packing import Pack
from mlm_pytorch.masking import millionths
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.loss import cross_entropy
from mlm_pytorch.objective.packs import PackMasker, pack_logits
from mlm_pytorch.tokens import SpecialTokens

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
) -> MaskedResult:
    """Predict `mask_prob` of each piece's tokens, all shown as the mask token, at positions fixed once and for all.

    Args:
        model: takes flat packs; its training mode is restored.
        packs: of a held-out corpus. Memory does not grow with their number.
        special: what the vocabulary reserves.
        mask_prob: share of each piece's tokens to predict.
        device: where the model is. By default its parameters'.
        autocast: dtype of matrix products, or None for the parameters' own.
        progress: called with the tokens read so far.

    Raises:
        ValueError: packs without a token to predict, or logits that are not finite.
    """
    device = device or next(model.parameters()).device
    masker = PackMasker(special, seed=EVALUATION_SEED)
    head = find_head(model)
    rate = millionths(mask_prob)
    was_training = model.training
    model.eval()
    loss_sum, num_correct, num_targets, num_tokens = 0.0, 0, 0, 0
    for pack in packs:
        masked = masker(pack, rate).to(device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = pack_logits(model, head, masked)
        pack_sum, count = cross_entropy(logits, masked.labels)
        loss_sum += float(pack_sum)
        num_correct += int((logits.argmax(-1) == masked.labels).sum())
        num_targets += int(count)
        num_tokens += masked.num_tokens
        if progress is not None:
            progress(num_tokens)
    model.train(was_training)
    if not num_targets:
        raise ValueError("the evaluation corpus holds no token to predict; give one with text")
    return MaskedResult(loss_sum / num_targets, num_correct / num_targets, num_targets, num_tokens)
