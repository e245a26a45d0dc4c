"""Cross entropy over a vocabulary, as a sum with a count.

Sums with counts (and not means) are what micro-batches and ranks can add up: the loss of a step is the sum of all
``loss_sum`` over the sum of all ``num_targets``.

The kernel works on a few rows of logits at a time and writes the gradient while the rows are still in cache, so that
float32 copies of the logits never exist as a whole: beside the logits, memory holds one gradient of their own dtype.
On a GPU `fused_loss` has kernels for it.
``benchmarks/objective.py`` measures it against plain cross entropy and torch's fused linear cross entropy.
"""

# K selected positions, V vocabulary, R rows of one chunk

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlm_pytorch.tokens import IGNORE_INDEX

# Logits handled at a time. On a CPU a chunk of 4 MiB in float32 stays in cache; a GPU wants few, large launches.
CPU_CHUNK = 1 << 20
GPU_CHUNK = 1 << 26


def cross_entropy(logits_KV: Tensor, labels_K: Tensor, *, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of the labels, and how many of them there are.

    Args:
        logits_KV: (K, V) float of any precision; sums and exponentials are taken in float32.
        labels_K: (K,) int64; positions with ``IGNORE_INDEX`` are skipped.
        z_loss: weight of the squared log-normaliser, which keeps logits from drifting (PaLM, arXiv 2204.02311, §5).

    Returns:
        ``loss_sum``, a float32 scalar that has a gradient path even without any target, and ``num_targets``, int64.

    >>> loss_sum, num_targets = cross_entropy(torch.zeros(3, 4), torch.tensor([1, 2, -100]))
    >>> round(float(loss_sum), 4), int(num_targets)     # 2 * log(4)
    (2.7726, 2)
    """
    if logits_KV.dim() != 2 or labels_K.shape != logits_KV.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits_KV.shape)} and labels {tuple(labels_K.shape)} do not fit; "
            "give logits (K, V) and labels (K,)"
        )
    loss_sum, _ = cross_entropy_with_hits(logits_KV, labels_K, z_loss=z_loss)
    return loss_sum, (labels_K != IGNORE_INDEX).sum()


def cross_entropy_with_hits(
    logits_KV: Tensor, labels_K: Tensor, *, z_loss: float = 0.0, fused: bool = False, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """As `cross_entropy`, with the number of labels that are the likeliest token, int64, in place of their number.

    `fused` takes the kernels of `objective.fused_loss`, for training on CUDA. `overwrite` lets the gradient take the
    place of the logits, for a caller to whom they belong: they are then lost, and backward can be run once.

    Raises:
        RuntimeError: in a second backward pass after `overwrite`.

    >>> _, num_correct = cross_entropy_with_hits(torch.eye(3), torch.tensor([0, 2, -100]))
    >>> int(num_correct)
    1
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain form, and would only see through ours
        return _plain(logits_KV, labels_K, z_loss), (logits_KV.argmax(-1) == labels_K).sum()
    if fused and torch.is_grad_enabled() and logits_KV.requires_grad:
        from mlm_pytorch.objective.fused_loss import fused_cross_entropy  # needs Triton

        return fused_cross_entropy(logits_KV, labels_K, z_loss, overwrite=overwrite)
    return _ChunkedCrossEntropy.apply(logits_KV, labels_K, z_loss, overwrite)  # type: ignore[return-value]


def _plain(logits_KV: Tensor, labels_K: Tensor, z_loss: float) -> Tensor:
    logits_KV = logits_KV.float()
    loss_sum = F.cross_entropy(logits_KV, labels_K, reduction="sum", ignore_index=IGNORE_INDEX)
    if z_loss:
        log_normaliser_K = logits_KV.logsumexp(-1) * (labels_K != IGNORE_INDEX)
        loss_sum = loss_sum + z_loss * log_normaliser_K.square().sum()
    return loss_sum


def _first_of_equals(is_best_R1: Tensor, is_equalled_R1: Tensor, logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """How many labels are their row's argmax, which is the first of equal logits; on a host.

    argmax takes longer than the softmax, so only rows are looked through where the label is the best and not alone.
    """
    doubtful_R = (is_best_R1 & is_equalled_R1).squeeze(1)
    if not bool(doubtful_R.any()):
        return is_best_R1.sum()
    first = logits_RV[doubtful_R].argmax(dim=-1) == labels_R[doubtful_R]
    return is_best_R1.sum() - doubtful_R.sum() + first.sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over the logits, some rows at a time."""

    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, labels_K: Tensor, z_loss: float, overwrite: bool) -> tuple[Tensor, Tensor]:
        on_host = logits_KV.device.type == "cpu"
        chunk = CPU_CHUNK if on_host else GPU_CHUNK
        rows = max(1, chunk // max(1, logits_KV.shape[1]))
        wants_grad = ctx.needs_input_grad[0]
        grad_KV = logits_KV.new_empty(0)
        if wants_grad:
            # A host's new memory costs a fault for every page: three such tensors were a tenth of a small model's step.
            grad_KV = logits_KV if overwrite else torch.empty_like(logits_KV)
        loss_sum = torch.zeros((), dtype=torch.float32, device=logits_KV.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=logits_KV.device)
        for start in range(0, logits_KV.shape[0], rows):
            logits_RV, labels_R = logits_KV[start : start + rows], labels_K[start : start + rows]
            is_target_R1 = (labels_R != IGNORE_INDEX).unsqueeze(1)
            index_R1 = labels_R.unsqueeze(1).masked_fill(~is_target_R1, 0)
            logits_RV = logits_RV.float()
            highest_R1, label_logit_R1 = logits_RV.amax(dim=-1, keepdim=True), logits_RV.gather(1, index_R1)
            probs_RV = torch.softmax(logits_RV, dim=-1)
            label_prob_R1 = probs_RV.gather(1, index_R1)
            next_best_R1 = probs_RV.scatter_(1, index_R1, -1.0).amax(dim=-1, keepdim=True)
            # The likeliest token's probability is at least 1 / V, so its logarithm is safe where the label's is not.
            log_normaliser_R1 = highest_R1 - torch.maximum(label_prob_R1, next_best_R1).log()
            # where, and not a product: an ignored row may hold NaN
            loss_sum += torch.where(is_target_R1, log_normaliser_R1 - label_logit_R1, 0.0).sum()
            if z_loss:
                loss_sum += z_loss * torch.where(is_target_R1, log_normaliser_R1, 0.0).square().sum()
            if on_host:
                is_best_R1 = is_target_R1 & (label_logit_R1 == highest_R1)
                num_correct += _first_of_equals(is_best_R1, label_prob_R1 == next_best_R1, logits_RV, labels_R)
            else:  # asking a GPU whether there are equals would wait for it
                num_correct += (logits_RV.argmax(dim=-1) == labels_R).sum()
            if wants_grad:
                scale_R1 = 1 + 2 * z_loss * log_normaliser_R1
                if z_loss:
                    probs_RV.mul_(scale_R1)
                probs_RV.scatter_(1, index_R1, label_prob_R1 * scale_R1 - 1)
                if on_host and bool(is_target_R1.all()):
                    grad_KV[start : start + rows] = probs_RV
                else:
                    grad_KV[start : start + rows] = probs_RV.masked_fill_(~is_target_R1, 0.0)
        ctx.save_for_backward(grad_KV)
        ctx.overwrite = overwrite
        ctx.mark_non_differentiable(num_correct)
        return loss_sum, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_KV,) = ctx.saved_tensors  # refused by autograd if it was multiplied once already
        grad_KV = grad_KV.mul_(grad_loss) if ctx.overwrite else grad_KV * grad_loss
        return grad_KV, None, None, None
