"""Attention of some tokens of a flat pack only, to all of their pieces: what the last layer needs.

Nobody reads the last layer's output but at the selected positions, so only those ask: at 15% of the tokens this leaves
out most of the layer's attention, and a third of its projection. Keys and values are everybody's.

Shapes as in `blocks`; K tokens that ask, S slots for them in a piece of one bucket, Q rows of all slots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm_pytorch.encoder.blocks import (
    BUCKET_STEP,
    LONGEST_KEPT,
    BlockPlan,
    attention_weights,
    turn,
    write_gradients,
)

LARGEST_SHARE = 0.5  # of a pack's tokens; where more of them ask, full slots save too little


@dataclass(frozen=True)
class Queries:
    """How the tokens that ask are laid out along the blocks of a plan, and their pack's keys and values.

    Attributes:
        plan: the blocks, and who must not see whom.
        slots: per bucket: slots S of a piece, and the first and last row + 1 of its (P, H, S) rows; no slots where
            nobody asks.
        rows: (Q,) rows of (K, H) in the order of the slots.
        back: (K H,) rows of the slots in the order of (K, H).
        empty_rows: rows of slots that nobody takes, which repeat the piece's last query.
        cos: (Q, E / 2), with `sin` what turns queries; they hold the softmax's scale.
        sin: see there.
        key_rows: (2 R,) rows of (T, 2, H) in the order of the blocks.
        keys_back: (T 2 H,) rows of (2, R) in the order of (T, 2, H).
    """

    plan: BlockPlan
    slots: tuple[tuple[int, int, int], ...]
    rows: Tensor
    back: Tensor
    empty_rows: Tensor
    cos: Tensor
    sin: Tensor
    key_rows: Tensor
    keys_back: Tensor

    @classmethod
    def of(cls, plan: BlockPlan, cu_seqlens: Tensor, positions: Tensor) -> "Queries | None":
        """For tokens `positions` (K,) of a pack with borders `cu_seqlens` (D + 1,).

        None where all tokens had better ask: many do, pieces are long, or a window limits what they see.
        """
        blocks, (num_tokens, num_asking) = plan.blocks, (int(cu_seqlens[-1]), len(positions))
        if plan.window is not None or not 0 < num_asking <= LARGEST_SHARE * num_tokens:
            return None
        if any(bucket.length > LONGEST_KEPT for bucket in blocks.buckets):
            return None
        num_heads = len(blocks.out_rows) // num_tokens
        heads = np.arange(num_heads)[:, None]
        piece = np.searchsorted(cu_seqlens.cpu().numpy(), positions.cpu().numpy(), side="right") - 1
        by_piece = np.argsort(piece, kind="stable")
        counts = np.bincount(piece, minlength=len(cu_seqlens) - 1)
        firsts = np.cumsum(counts) - counts
        slots, rows, empty, start = [], [], [], 0
        for bucket in blocks.buckets:
            where = np.array(bucket.pieces)
            step = -(-bucket.length // (8 * BUCKET_STEP)) * BUCKET_STEP  # few shapes: each costs code of its own
            in_piece = np.arange(-(-int(counts[where].max()) // step) * step)
            untaken = in_piece >= counts[where, None]
            last = firsts[where, None] + np.maximum(counts[where, None], 1) - 1  # of the piece, or any, where none asks
            asking = by_piece[np.minimum(firsts[where, None] + in_piece, np.minimum(last, len(by_piece) - 1))]
            rows.append((asking[:, None] * num_heads + heads).ravel())
            empty.append(np.broadcast_to(untaken[:, None], (len(where), num_heads, len(in_piece))).ravel())
            slots.append((len(in_piece), start, start + rows[-1].size))
            start += rows[-1].size
        in_order, untaken = np.concatenate(rows), np.concatenate(empty)
        back = np.empty(num_asking * num_heads, dtype=np.int64)
        (taken,) = np.nonzero(~untaken)
        back[in_order[taken]] = taken
        device = positions.device
        made = (torch.from_numpy(x).to(device) for x in (in_order, back, np.nonzero(untaken)[0]))
        of_slots, back_, empty_rows = made
        token, head = blocks.grad_rows // num_heads, blocks.grad_rows % num_heads
        parts = torch.arange(2, device=device)[:, None]
        key_rows = token * (2 * num_heads) + head + parts * num_heads
        keys_back = blocks.out_rows.view(-1, 1, num_heads) + parts * len(blocks.grad_rows)
        as_keys = blocks.out_rows.view(-1, num_heads)[positions].flatten()[of_slots]
        cos, sin = plan.cos[0, as_keys], plan.sin[0, as_keys]
        return cls(plan, tuple(slots), of_slots, back_, empty_rows, cos, sin, key_rows.flatten(), keys_back.flatten())


class _QueryAttention(torch.autograd.Function):
    """As `blocks._BlockAttention`, for queries of some tokens, and keys and values of all."""

    @staticmethod
    def forward(ctx: Any, q_KHE: Tensor, kv_T2HE: Tensor, queries: Queries) -> Tensor:
        head_dim, plan = q_KHE.shape[-1], queries.plan
        with torch.autocast(q_KHE.device.type, enabled=False):
            q = q_KHE.reshape(-1, head_dim).index_select(0, queries.rows)
            kv = kv_T2HE.reshape(-1, head_dim).index_select(0, queries.key_rows).view(2, -1, head_dim)
            turn(q, queries.cos, queries.sin)
            turn(kv[0], plan.cos[1], plan.sin[1])
            out, saved = torch.empty_like(q), []
            for number, bias in enumerate(plan.biases):
                q_, out_, k_, v_ = _of_bucket(queries, number, (q, out), (*kv,))
                if q_.numel():
                    saved.append(attention_weights(q_, k_, bias))
                    torch.bmm(saved[-1], v_, out=out_)
            heads_out = out.index_select(0, queries.back)
        ctx.save_for_backward(q, kv, *saved)
        ctx.queries = queries
        return heads_out.view(len(q_KHE), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        q, kv, *saved = ctx.saved_tensors
        queries, head_dim, (grad_out,) = ctx.queries, q.shape[-1], grads
        plan, kept = queries.plan, iter(saved)
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_rows = grad_out.reshape(-1, head_dim).index_select(0, queries.rows)
            grad_rows.index_fill_(0, queries.empty_rows, 0)
            grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
            for number in range(len(plan.biases)):
                asked, keys = (q, grad_q, grad_rows), (*kv, *grad_kv)
                q_, grad_q_, grad_, k_, v_, grad_k_, grad_v_ = _of_bucket(queries, number, asked, keys)
                if q_.numel():
                    write_gradients(next(kept), (q_, k_, v_), grad_, (grad_q_, grad_k_, grad_v_))
                else:
                    grad_k_.zero_()
                    grad_v_.zero_()
            turn(grad_q, queries.cos, -queries.sin)
            turn(grad_kv[0], plan.cos[1], -plan.sin[1])
            grad_q = grad_q.index_select(0, queries.back)
            grad_kv = grad_kv.view(-1, head_dim).index_select(0, queries.keys_back)
        num_heads = len(queries.back) // len(grad_out)
        return grad_q.view(-1, num_heads, head_dim), grad_kv.view(-1, 2, num_heads, head_dim), None


def _of_bucket(queries: Queries, number: int, asked: tuple[Tensor, ...], keys: tuple[Tensor, ...]) -> list[Tensor]:
    """The rows of a bucket, as what batched products take: (P H, S, E) of queries, (P H, length, E) of keys."""
    bucket, (slots, start, end) = queries.plan.blocks.buckets[number], queries.slots[number]
    head_dim, batch = asked[0].shape[-1], (bucket.end - bucket.start) // bucket.length
    of_asked = [x[start:end].view(batch, slots, head_dim) for x in asked]
    return of_asked + [x[bucket.start : bucket.end].view(batch, bucket.length, head_dim) for x in keys]


def attend_queries(q_KHE: Tensor, kv_T2HE: Tensor, queries: Queries) -> Tensor:
    """Attention of some tokens of a flat pack to their pieces, before rotation: (K, H * E).

    Args:
        q_KHE: queries (K, H, E) of the tokens that `queries` was made for, in their order.
        kv_T2HE: keys and values (T, 2, H, E) of all.
        queries: from `Queries.of`.

    Example:
        >>> from mlm_pytorch.encoder.blocks import Blocks, attend_blocks
        >>> cu_seqlens, qkv, asking = torch.tensor([0, 5, 9]), torch.randn(9, 3, 2, 4), torch.tensor([8, 1, 2])
        >>> plan = BlockPlan.of(Blocks.of(cu_seqlens, num_heads=2), 1e4, 4, torch.float32, window=None)
        >>> some = attend_queries(qkv[asking, 0], qkv[:, 1:], Queries.of(plan, cu_seqlens, asking))
        >>> torch.allclose(some, attend_blocks(qkv, plan)[asking], atol=1e-6)
        True
    """
    out = _QueryAttention.apply(q_KHE, kv_T2HE, queries)
    assert isinstance(out, Tensor)
    return out
