"""Cross entropy over a vocabulary on CUDA: the logits are read once for the loss, once more for the gradient.

Memory is what it costs: for 20,000 targets and 50,000 entries the logits are 2 GB, and plain torch passes over them, or
over copies in float32, about ten times. Here a program takes one row: sum and maximum in one pass (Milakov and
Gimelshein 2018, arXiv 1805.02867). The gradient is written in backward, times that of the loss.
`benchmarks/gpu.py` measures it within a training step.

Needs Triton, which comes with torch for CUDA, and a C compiler.

Shapes: K selected positions, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlm_pytorch.tokens import IGNORE_INDEX

_BLOCK = 4096  # logits of a row at a time


def fused_cross_entropy(
    logits_KV: Tensor, labels_K: Tensor, z_loss: float, *, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """As `loss.cross_entropy_with_hits`: summed loss (), float32, and hits (), int64."""
    return _FusedCrossEntropy.apply(logits_KV, labels_K, z_loss, overwrite)  # type: ignore[return-value]


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, labels_K: Tensor, z_loss: float, overwrite: bool) -> tuple[Tensor, Tensor]:
        logits_KV = logits_KV.contiguous()
        num_rows, num_columns = logits_KV.shape
        loss_K, log_normaliser_K = torch.empty(2, num_rows, dtype=torch.float32, device=logits_KV.device)
        hits_K = torch.empty(num_rows, dtype=torch.int64, device=logits_KV.device)
        if num_rows:
            with torch.cuda.device_of(logits_KV):
                _loss[(num_rows,)](
                    logits_KV, labels_K, loss_K, log_normaliser_K, hits_K, num_columns, z_loss, IGNORE_INDEX, _BLOCK
                )
        ctx.save_for_backward(logits_KV, labels_K, log_normaliser_K)
        ctx.z_loss, ctx.overwrite = z_loss, overwrite
        loss_sum, num_correct = loss_K.sum(), hits_K.sum()
        ctx.mark_non_differentiable(num_correct)
        return loss_sum, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits_KV, labels_K, log_normaliser_K = ctx.saved_tensors
        num_rows, num_columns = logits_KV.shape
        if ctx.overwrite:  # an entry of the gradient needs its own logit and no other
            grad_KV = logits_KV
            torch.autograd.graph.increment_version(logits_KV)  # so that autograd refuses a second pass
        else:
            grad_KV = torch.empty_like(logits_KV)
        if num_rows:
            with torch.cuda.device_of(logits_KV):
                _gradient[(num_rows, triton.cdiv(num_columns, _BLOCK))](
                    logits_KV, labels_K, log_normaliser_K, grad_loss, grad_KV,
                    num_columns, ctx.z_loss, IGNORE_INDEX, _BLOCK,
                )  # fmt: skip
        return grad_KV, None, None, None


@triton.jit
def _loss(
    logits, labels, losses, log_normalisers, hits, num_columns, z_loss,
    IGNORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss, log-normaliser and hit of one row."""
    row = tl.program_id(0)
    at = logits + row.to(tl.int64) * num_columns
    column = tl.arange(0, BLOCK)
    most, total = -1e30, 0.0
    for begin in range(0, num_columns, BLOCK):
        x = tl.load(at + begin + column, mask=begin + column < num_columns, other=float("-inf")).to(tl.float32)
        more = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - more) + tl.sum(tl.exp(x - more), 0)
        most = more
    log_normaliser = most + tl.log(total)
    label = tl.load(labels + row)
    is_target = label != IGNORED
    at_label = tl.load(at + label, mask=is_target, other=0.0).to(tl.float32)
    loss = log_normaliser - at_label + z_loss * log_normaliser * log_normaliser
    # The likeliest token is the first of equals, as argmax has it; rarely is there something to look through.
    is_hit = is_target & (at_label == most)
    earlier = 0
    for begin in range(0, tl.where(is_hit, label, 0).to(tl.int32), BLOCK):
        x = tl.load(at + begin + column, mask=begin + column < label, other=float("-inf")).to(tl.float32)
        earlier += tl.sum((x == most).to(tl.int32), 0)
    tl.store(losses + row, tl.where(is_target, loss, 0.0))  # where: an ignored row may hold NaN
    tl.store(log_normalisers + row, log_normaliser)
    tl.store(hits + row, (is_hit & (earlier == 0)).to(tl.int64))


@triton.jit
def _gradient(
    logits, labels, log_normalisers, grad_loss, gradient, num_columns, z_loss,
    IGNORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one row's logits in one block of columns."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    at = row.to(tl.int64) * num_columns + column
    label, log_normaliser = tl.load(labels + row), tl.load(log_normalisers + row)
    factor = tl.load(grad_loss).to(tl.float32)
    x = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    probability = tl.exp(x - log_normaliser) * (1 + 2 * z_loss * log_normaliser)
    result = factor * tl.where(column == label, probability - 1, probability)
    result = tl.where(label != IGNORED, result, 0.0)
    tl.store(gradient + at, result.to(gradient.dtype.element_ty), mask=inside)
