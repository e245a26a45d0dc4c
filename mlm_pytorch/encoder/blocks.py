"""Attention over a flat pack as dense blocks: pieces of like length become one, so that a pack costs a few large matrix
products instead of many small ones.

Shapes: T tokens of a pack, D pieces in a pack, H heads, E width of a head, P pieces of one bucket, R rows of blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_pytorch.encoder.attention import band, rotary_tables, rotate

BUCKET_STEP = 16  # lengths are rounded up to this: 2% of padding on text, a third of the blocks of exact lengths
# Attention weights are kept for backward of pieces up to this length, and of longer ones while a layer's are no more
# than so many; others are computed again, since they would fill the memory.
LONGEST_KEPT, WEIGHTS_KEPT = 512, 2**24
SCORES_AT_ONCE = 2**24  # of longer pieces, as many heads at once as have so many scores

_softmax_backward = torch.ops.aten._softmax_backward_data.default


@dataclass(frozen=True)
class Bucket:
    """Pieces of one pack whose lengths round up to the same `length`: rows `start` to `end` of the blocks."""

    pieces: tuple[int, ...]  # P of them, counted through the pack
    length: int
    start: int
    end: int
    past_end: Tensor | None  # (P, length) bool, True past a piece's end; None where there is no such slot
    kept: bool  # whether attention weights are kept for backward

    @property
    def num_pieces(self) -> int:
        """P."""
        return len(self.pieces)


@dataclass(frozen=True)
class Blocks:
    """How the heads of one pack are laid out as dense blocks, and back; made once per pack and shared by all layers.

    A row is what one head holds of one token, E numbers. Blocks are R rows, bucket by bucket, each (P, H, length): what
    a batched matrix product takes. One gather of rows goes there, one comes back; nothing is transposed.
    """

    buckets: tuple[Bucket, ...]
    positions: Tensor  # (R,) position within its piece of each row
    qkv_rows: Tensor  # (3 R,) rows of (T, 3, H) in the order of the blocks
    out_rows: Tensor  # (T H,) rows of the blocks in the order of (T, H)
    qkv_back: Tensor  # (T 3 H,) rows of (3, R) in the order of (T, 3, H)
    grad_rows: Tensor  # (R,) rows of (T, H) in the order of the blocks
    empty_rows: Tensor | None  # rows past a piece's end, which repeat its last token; None where there are none

    @classmethod
    def of(cls, cu_seqlens: Tensor, num_heads: int) -> "Blocks":
        """Plan a pack whose pieces are bounded by `cu_seqlens` (D + 1,), read on the host.

        Example:
            >>> blocks = Blocks.of(torch.tensor([0, 32, 64, 69]), num_heads=2)
            >>> [(b.num_pieces, b.length, b.start, b.end) for b in blocks.buckets]
            [(2, 32, 0, 128), (1, 16, 128, 160)]
        """
        device = cu_seqlens.device
        cu = cu_seqlens.cpu().numpy().astype(np.int64)
        starts, lengths = cu[:-1], np.diff(cu)
        rounded = -(-lengths // BUCKET_STEP) * BUCKET_STEP
        buckets, heads, parts = [], np.arange(num_heads)[None, :, None], []
        start, room = 0, WEIGHTS_KEPT
        for length in np.unique(rounded[rounded > 0])[::-1].tolist():
            (where,) = np.nonzero(rounded == length)
            shape = (len(where), num_heads, length)
            slots = np.arange(length)
            past_end = slots >= lengths[where, None]
            tokens = starts[where, None] + np.minimum(slots, lengths[where, None] - 1)
            rows = tokens[:, None] * num_heads + heads  # of (T, H)
            parts.append([np.broadcast_to(x, shape).ravel() for x in (rows, slots, past_end[:, None])])
            end = start + rows.size
            mask = torch.from_numpy(past_end).to(device) if past_end.any() else None
            kept = length <= LONGEST_KEPT or rows.size * length <= room
            room -= rows.size * length if kept and length > LONGEST_KEPT else 0
            buckets.append(Bucket(tuple(where.tolist()), length, start, end, mask, kept))
            start = end
        rows, positions, past_end = (np.concatenate(same) for same in zip(*parts, strict=True))
        tokens, head = np.divmod(rows, num_heads)
        # parts q, k and v of a token lie num_heads rows apart
        qkv_rows = (tokens * 3 * num_heads + head) + np.arange(3)[:, None] * num_heads
        out_rows = np.empty(int(cu[-1]) * num_heads, dtype=np.int64)
        out_rows[rows[~past_end]] = np.nonzero(~past_end)[0]
        qkv_back = out_rows.reshape(-1, 1, num_heads) + np.arange(3)[:, None] * start
        (empty,) = np.nonzero(past_end)
        made = [torch.from_numpy(x.ravel()).to(device) for x in (positions, qkv_rows, out_rows, qkv_back, rows, empty)]
        where, qkv, out, back, grad, none = made
        return cls(tuple(buckets), where, qkv, out, back, grad, none if len(empty) else None)


@dataclass(frozen=True)
class BlockPlan:
    """What layers of one kind share for one pack: its blocks, the angles there, and who must not see whom.

    `cos` and `sin` (2, R, E / 2) turn queries and keys; those of the queries hold the softmax's scale, which saves a
    pass over the scores. `biases` holds, per bucket, what is added to them, or None where every slot sees all.
    """

    blocks: Blocks
    cos: Tensor
    sin: Tensor
    biases: tuple[Tensor | None, ...]
    window: int | None

    @classmethod
    def of(cls, blocks: Blocks, theta: float, head_dim: int, dtype: torch.dtype, window: int | None) -> "BlockPlan":
        """Plan attention over `blocks` in `dtype`, with rotary base `theta` and `window` positions on each side."""
        longest = max(bucket.length for bucket in blocks.buckets)
        cos, sin = rotary_tables(torch.arange(longest, device=blocks.positions.device), theta, head_dim)
        scale = torch.tensor([head_dim**-0.5, 1.0], device=cos.device)[:, None, None]
        cos, sin = cos[blocks.positions] * scale, sin[blocks.positions] * scale
        return cls(
            blocks, cos, sin, tuple(_bias(bucket, window, dtype, cos.device) for bucket in blocks.buckets), window
        )


def _bias(bucket: Bucket, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What is added to scores (P, H, length, length): -inf where a query must not look. None where all is seen."""
    allowed = None
    if bucket.past_end is not None:
        allowed = ~bucket.past_end[:, None, :]
    if window is not None and window < bucket.length - 1:
        near = band(bucket.length, window, device)[None]
        # A slot past the end sees the whole piece, so that its row stays finite; nothing reads that row.
        allowed = near if allowed is None or bucket.past_end is None else allowed & (near | bucket.past_end[..., None])
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))[:, None]


def turn(x_2RE: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`rotate` in place, in float32: half the passes over memory of the plain form."""
    half = cos.shape[-1]
    first, second = x_2RE[..., :half], x_2RE[..., half:]
    a, b = (part.to(torch.float32, copy=True) for part in (first, second))
    turned = (a * cos).addcmul_(b, sin, value=-1)
    first.copy_(turned)
    second.copy_(torch.mul(a, sin, out=turned).addcmul_(b, cos))


def _shares(bucket: Bucket, bias: Tensor | None, num_heads: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Which heads of which pieces are attended to at once, as rows of the blocks, and the bias of these pieces."""
    length = bucket.length
    if length <= LONGEST_KEPT:
        yield slice(bucket.start, bucket.end), bias
        return
    at_once = min(num_heads, max(1, SCORES_AT_ONCE // length**2))
    for piece in range(bucket.num_pieces):
        for head in range(0, num_heads, at_once):
            first, last = (piece * num_heads + h for h in (head, min(head + at_once, num_heads)))
            rows = slice(bucket.start + first * length, bucket.start + last * length)
            yield rows, bias if bias is None or len(bias) == 1 else bias[piece : piece + 1]


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights (heads of pieces, length, length) of turned and scaled queries and keys."""
    scores = torch.bmm(q, k.mT)
    if bias is not None:
        scores.view(len(bias), -1, *scores.shape[1:]).add_(bias)
    return torch.softmax(scores, dim=-1)


def write_gradients(
    weights: Tensor, parts: tuple[Tensor, Tensor, Tensor], grad: Tensor, of_parts: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write into `of_parts` the gradients of turned queries, keys and values from that of what attention gave."""
    (q, k, v), (grad_q, grad_k, grad_v) = parts, of_parts
    torch.bmm(weights.mT, grad, out=grad_v)
    grad_scores = _softmax_backward(torch.bmm(grad, v.mT), weights, -1, weights.dtype)
    torch.bmm(grad_scores, k, out=grad_q)
    torch.bmm(grad_scores.mT, q, out=grad_k)


class _BlockAttention(torch.autograd.Function):
    """Rotary positions and attention over the blocks of a pack, from `qkv` to the heads' outputs.

    One function instead of a chain of views: autograd would write a zero-filled tensor of the pack's size for every
    slice of it, once per bucket and input.
    """

    @staticmethod
    def forward(ctx, qkv_T3HE, plan: BlockPlan):
        num_tokens, _, num_heads, head_dim = qkv_T3HE.shape
        blocks = plan.blocks
        with torch.autocast(qkv_T3HE.device.type, enabled=False):
            x = qkv_T3HE.reshape(-1, head_dim).index_select(0, blocks.qkv_rows).view(3, -1, head_dim)
            turn(x[:2], plan.cos, plan.sin)
            out = torch.empty_like(x[2])
            saved = []
            for bucket, bias in zip(blocks.buckets, plan.biases, strict=True):
                for rows, bias_ in _shares(bucket, bias, num_heads):
                    q, k, v, out_ = (part[rows].view(-1, bucket.length, head_dim) for part in (*x, out))
                    weights = attention_weights(q, k, bias_)
                    torch.bmm(weights, v, out=out_)
                    if bucket.kept:
                        saved.append(weights)
            heads_out = out.index_select(0, blocks.out_rows)
        ctx.save_for_backward(x, *saved)
        ctx.plan, ctx.num_heads = plan, num_heads
        return heads_out.view(num_tokens, num_heads * head_dim)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, *saved = ctx.saved_tensors
        plan, head_dim, (grad_out,) = ctx.plan, x.shape[-1], grads
        blocks, num_heads = plan.blocks, ctx.num_heads
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_rows = grad_out.reshape(-1, head_dim).index_select(0, blocks.grad_rows)
            if blocks.empty_rows is not None:
                grad_rows.index_fill_(0, blocks.empty_rows, 0)
            grad_x = torch.empty_like(x)
            kept = iter(saved)
            for bucket, bias in zip(blocks.buckets, plan.biases, strict=True):
                for rows, bias_ in _shares(bucket, bias, num_heads):
                    parts = (*x, *grad_x, grad_rows)
                    q, k, v, grad_q, grad_k, grad_v, grad_ = (
                        part[rows].view(-1, bucket.length, head_dim) for part in parts
                    )
                    weights = next(kept) if bucket.kept else attention_weights(q, k, bias_)
                    write_gradients(weights, (q, k, v), grad_, (grad_q, grad_k, grad_v))
            turn(grad_x[:2], plan.cos, -plan.sin)
            grad_qkv = grad_x.view(-1, head_dim).index_select(0, blocks.qkv_back)
        return grad_qkv.view(len(grad_out), 3, -1, head_dim), None


def attend_blocks(qkv_T3HE: Tensor, plan: BlockPlan) -> Tensor:
    """Attention within the pieces of a flat pack, on any device and in any floating dtype.

    Args:
        qkv_T3HE: queries, keys and values before rotation (T, 3, H, E).
        plan: of the pack, from `BlockPlan.of(Blocks.of(cu_seqlens, H), …)`.

    Returns:
        (T, H * E), in qkv's dtype.
    """
    blocks, head_dim = plan.blocks, qkv_T3HE.shape[-1]
    if plan.window is None or all(b.length <= max(LONGEST_KEPT, 4 * plan.window) for b in blocks.buckets):
        out = _BlockAttention.apply(qkv_T3HE, plan)
        assert isinstance(out, Tensor)
        return out
    x = qkv_T3HE.reshape(-1, head_dim).index_select(0, blocks.qkv_rows).view(3, -1, head_dim)
    q, k = rotate(x[:2], plan.cos, plan.sin)
    outs = []
    for bucket, bias in zip(blocks.buckets, plan.biases, strict=True):
        shape = (bucket.num_pieces, -1, bucket.length, head_dim)
        q_, k_, v_ = (part[bucket.start : bucket.end].view(shape) for part in (q, k, x[2]))
        if bucket.length > 4 * plan.window:
            valid = None if bucket.past_end is None else ~bucket.past_end
            out = _attend_band(q_, k_, v_, valid, plan.window)
        else:
            out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=bias, scale=1.0)
        outs.append(out.reshape(-1, head_dim))
    return torch.cat(outs).index_select(0, blocks.out_rows).view(len(qkv_T3HE), -1)


def _attend_band(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, window: int) -> Tensor:
    """Sliding-window attention in time and memory linear in the length, for (P, H, length, E) blocks.

    Queries, scaled already, are cut into chunks of `window`; each meets the keys of its own span and of one window to
    each side.
    """
    num_pieces, num_heads, length, head_dim = q.shape
    chunks = -(-length // window)
    tail = chunks * window - length
    q = F.pad(q, (0, 0, 0, tail)).view(num_pieces, num_heads, chunks, window, head_dim)
    k, v = (F.pad(x, (0, 0, window, window + tail)).unfold(2, 3 * window, window).transpose(-1, -2) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None]
    key = torch.arange(3 * window, device=q.device) - window
    near = (query - key).abs() <= window  # (window, 3 window): positions relative to the chunk's first query
    keys = torch.ones(1, length, dtype=torch.bool, device=q.device) if valid is None else valid
    keys = F.pad(keys, (window, window + tail)).unfold(1, 3 * window, window)  # (P, chunks, 3 window)
    mask = near & keys[:, None, :, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.reshape(num_pieces, num_heads, chunks * window, head_dim)[:, :, :length]
