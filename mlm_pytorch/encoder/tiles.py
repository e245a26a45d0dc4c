"""Attention within the pieces of a flat pack on CUDA, by kernels of our own, for packs of many short pieces.

torch's variable-length kernel starts as many programs for each piece as the longest one needs, in tiles of 128, and
takes queries that were rotated and laid out before. Here a program is one tile of 64 tokens of one piece (no program is
idle, a window costs what it sees), queries and keys are rotated where they lie, and the gradient is written straight
into that of `qkv`. The method is flash attention's (Dao 2023, arXiv 2307.08691): scores never leave the chip, and
backward computes them again. `benchmarks/gpu.py` measures it beside torch's.

Needs Triton, which comes with torch for CUDA, and a C compiler: `Trunk.compile_layers` chooses it, and without that
`attention.attend_varlen` computes the same.

Shapes: T tokens of a pack, D pieces, H heads, E width of a head, N tiles.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # tokens of a program: half of a median document of a web corpus
_LOG2_E = tl.constexpr(1.4426950408889634)
# Tokens met at a time, and how a program is laid out: of twelve ways the fastest on an H200, for all three kernels.
_LAYOUT = {"MET": 32, "num_warps": 4, "num_stages": 3}


@dataclass(frozen=True)
class Tiles:
    """The tiles of a pack: up to `TILE` tokens of one piece each.

    Attributes:
        first: (N,) int32, a tile's first token.
        start, end: (N,) int32, the borders of its piece. A tile that is left over begins at or past the end.
    """

    first: Tensor
    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, num_tokens: int) -> "Tiles":
        """Of the pieces bounded by `cu_seqlens` (D + 1,), computed on its device without waiting for it.

        Example:
            >>> tiles = Tiles.of(torch.tensor([0, 70, 100]), 100)
            >>> tiles.first.tolist(), tiles.end.tolist()
            ([0, 64, 70], [70, 70, 100])
        """
        bounds = cu_seqlens.long()
        counts = -(-bounds.diff() // TILE)
        ends = counts.cumsum(0)
        tile = torch.arange(num_tokens // TILE + len(counts), device=bounds.device)
        piece = torch.searchsorted(ends, tile, right=True).clamp_(max=len(counts) - 1)
        start, end = bounds[piece], bounds[piece + 1]
        first = start + (tile - (ends - counts)[piece]) * TILE
        return cls(first.int(), start.int(), end.int())


@dataclass(frozen=True)
class TilePlan:
    """What layers of one kind share for one pack: tiles, angles (T, E / 2) in float32, and the window."""

    tiles: Tiles
    cos: Tensor
    sin: Tensor
    window: int | None


def attend_tiles(qkv_T3HE: Tensor, plan: TilePlan) -> Tensor:
    """Attention within the pieces of a flat pack: (T, H * E) from queries, keys and values before rotation.

    Turns the queries and keys where they lie: nobody may need `qkv_T3HE` afterwards, and autograd refuses who does.
    """
    out = _TileAttention.apply(qkv_T3HE, plan)
    assert isinstance(out, Tensor)
    return out


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, plan: TilePlan):
        qkv = qkv.contiguous()
        num_tokens, _, heads, head_dim = qkv.shape
        tiles, window = plan.tiles, plan.window or 0
        out = qkv.new_empty(num_tokens, heads * head_dim)
        sums = torch.empty(heads, num_tokens, dtype=torch.float32, device=qkv.device)
        grid = (len(tiles.first), heads)
        with torch.cuda.device_of(qkv):
            _turn[(triton.cdiv(num_tokens, 32),)](qkv, plan.cos, plan.sin, num_tokens, heads, head_dim, 32, num_warps=4)
            _forward[grid](
                qkv,
                out,
                sums,
                tiles.first,
                tiles.start,
                tiles.end,
                num_tokens,
                head_dim**-0.5 * _LOG2_E.value,
                heads,
                head_dim,
                window,
                TILE,
                **_LAYOUT,
            )
        torch.autograd.graph.increment_version(qkv)
        ctx.save_for_backward(qkv, out, sums)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        qkv, out, sums = ctx.saved_tensors
        num_tokens, _, heads, head_dim = qkv.shape
        plan, tiles, window = ctx.plan, ctx.plan.tiles, ctx.plan.window or 0
        grad_out = grads[0].contiguous()
        grad_qkv, deltas = torch.empty_like(qkv), torch.empty_like(sums)
        grid = (len(tiles.first), heads)
        shared = (tiles.first, tiles.start, tiles.end, plan.cos, plan.sin, num_tokens, head_dim**-0.5)
        with torch.cuda.device_of(qkv):
            _backward_queries[grid](
                qkv, out, grad_out, sums, deltas, grad_qkv, *shared, heads, head_dim, window, TILE, **_LAYOUT
            )
            _backward_keys[grid](
                qkv, grad_out, sums, deltas, grad_qkv, *shared, heads, head_dim, window, TILE, **_LAYOUT
            )
        return grad_qkv, None


@triton.jit
def _turn(qkv, cos, sin, num_tokens, H: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr):
    """Rotate queries and keys in place; one program takes ROWS tokens."""
    HALF: tl.constexpr = E // 2
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < num_tokens)[:, None]
    column = tl.arange(0, HALF)
    c = tl.load(cos + row[:, None] * HALF + column, mask=inside, other=0.0)
    s = tl.load(sin + row[:, None] * HALF + column, mask=inside, other=0.0)
    for part in range(2 * H):
        at = qkv + row[:, None] * (3 * H * E) + part * E + column
        a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, (a * c - b * s).to(qkv.dtype.element_ty), mask=inside)
        tl.store(at + HALF, (b * c + a * s).to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    qkv, out, sums, first_token, piece_start, piece_end, num_tokens, scale,
    H: tl.constexpr, E: tl.constexpr, WINDOW: tl.constexpr, OWN: tl.constexpr, MET: tl.constexpr,
):  # fmt: skip
    """Outputs of one head's queries in one tile; `sums` (H, T) are the base-2 logarithms of the softmax's sums."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first, start, end = tl.load(first_token + tile), tl.load(piece_start + tile), tl.load(piece_end + tile)
    if first >= end:
        return
    base = start.to(tl.int64)
    heads = qkv + base * (3 * H * E) + head * E
    column = tl.arange(0, E)
    row = first - start + tl.arange(0, OWN)  # within the piece, as all positions below
    length = end - start
    own = (row < length)[:, None]
    q = tl.load(heads + row[:, None] * (3 * H * E) + column, mask=own, other=0.0)
    low, high = 0, length
    if WINDOW:
        low = tl.maximum(0, first - start - WINDOW)
        high = tl.minimum(length, first - start + OWN + WINDOW)
    most = tl.full([OWN], -1e30, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    gathered = tl.zeros([OWN, E], tl.float32)
    for begin in range(low, high, MET):
        met = begin + tl.arange(0, MET)
        at = heads + met[:, None] * (3 * H * E) + column
        there = (met < high)[:, None]
        k = tl.load(at + H * E, mask=there, other=0.0)
        v = tl.load(at + 2 * H * E, mask=there, other=0.0)
        seen = (met < high)[None, :]
        if WINDOW:
            seen = seen & (tl.abs(row[:, None] - met[None, :]) <= WINDOW)
        scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)  # finite: a row may see none of these
        more = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - more[:, None])
        kept = tl.exp2(most - more)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None]
        gathered = tl.dot(weights.to(v.dtype), v, gathered)
        most = more
    there = out + (base + row)[:, None] * (H * E) + head * E + column
    tl.store(there, (gathered / total[:, None]).to(out.dtype.element_ty), mask=own)
    tl.store(sums + head.to(tl.int64) * num_tokens + base + row, most + tl.log2(total), mask=row < length)


@triton.jit
def _backward_queries(
    qkv, out, grad_out, sums, deltas, grad_qkv, first_token, piece_start, piece_end, cos, sin, num_tokens, scale,
    H: tl.constexpr, E: tl.constexpr, WINDOW: tl.constexpr, OWN: tl.constexpr, MET: tl.constexpr,
):  # fmt: skip
    """Gradient of one head's queries in one tile, and what backward of the keys needs of them: `deltas` (H, T)."""
    HALF: tl.constexpr = E // 2
    tile, head = tl.program_id(0), tl.program_id(1)
    first, start, end = tl.load(first_token + tile), tl.load(piece_start + tile), tl.load(piece_end + tile)
    if first >= end:
        return
    base = start.to(tl.int64)
    heads = qkv + base * (3 * H * E) + head * E
    column = tl.arange(0, E)
    row = first - start + tl.arange(0, OWN)
    length = end - start
    own = (row < length)[:, None]
    q = tl.load(heads + row[:, None] * (3 * H * E) + column, mask=own, other=0.0)
    at = (base + row)[:, None] * (H * E) + head * E + column
    grad = tl.load(grad_out + at, mask=own, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * tl.load(out + at, mask=own, other=0.0).to(tl.float32), 1)
    of_row = head.to(tl.int64) * num_tokens + base + row
    tl.store(deltas + of_row, delta, mask=row < length)
    log_sum = tl.load(sums + of_row, mask=row < length, other=0.0)
    low, high = 0, length
    if WINDOW:
        low = tl.maximum(0, first - start - WINDOW)
        high = tl.minimum(length, first - start + OWN + WINDOW)
    grad_q = tl.zeros([OWN, E], tl.float32)
    for begin in range(low, high, MET):
        met = begin + tl.arange(0, MET)
        at_met = heads + met[:, None] * (3 * H * E) + column
        there = (met < high)[:, None]
        k = tl.load(at_met + H * E, mask=there, other=0.0)
        v = tl.load(at_met + 2 * H * E, mask=there, other=0.0)
        seen = (met < high)[None, :]
        if WINDOW:
            seen = seen & (tl.abs(row[:, None] - met[None, :]) <= WINDOW)
        scores = tl.dot(q, tl.trans(k)) * (scale * _LOG2_E)
        weights = tl.where(seen, tl.exp2(scores - log_sum[:, None]), 0.0)
        grad_weights = tl.dot(grad, tl.trans(v))
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q)
    _store_turned_back(
        grad_qkv + base * (3 * H * E) + head * E + row[:, None] * (3 * H * E), grad_q * scale, own,
        (base + row)[:, None] * HALF, cos, sin, E, OWN,
    )  # fmt: skip


@triton.jit
def _backward_keys(
    qkv, grad_out, sums, deltas, grad_qkv, first_token, piece_start, piece_end, cos, sin, num_tokens, scale,
    H: tl.constexpr, E: tl.constexpr, WINDOW: tl.constexpr, OWN: tl.constexpr, MET: tl.constexpr,
):  # fmt: skip
    """Gradients of one head's keys and values in one tile; runs after `_backward_queries`."""
    HALF: tl.constexpr = E // 2
    tile, head = tl.program_id(0), tl.program_id(1)
    first, start, end = tl.load(first_token + tile), tl.load(piece_start + tile), tl.load(piece_end + tile)
    if first >= end:
        return
    base = start.to(tl.int64)
    heads = qkv + base * (3 * H * E) + head * E
    column = tl.arange(0, E)
    row = first - start + tl.arange(0, OWN)
    length = end - start
    own = (row < length)[:, None]
    at = heads + row[:, None] * (3 * H * E) + column
    k = tl.load(at + H * E, mask=own, other=0.0)
    v = tl.load(at + 2 * H * E, mask=own, other=0.0)
    low, high = 0, length
    if WINDOW:
        low = tl.maximum(0, first - start - WINDOW)
        high = tl.minimum(length, first - start + OWN + WINDOW)
    grad_k = tl.zeros([OWN, E], tl.float32)
    grad_v = tl.zeros([OWN, E], tl.float32)
    for begin in range(low, high, MET):
        met = begin + tl.arange(0, MET)
        there = met < high
        q = tl.load(heads + met[:, None] * (3 * H * E) + column, mask=there[:, None], other=0.0)
        grad = tl.load(grad_out + (base + met)[:, None] * (H * E) + head * E + column, mask=there[:, None], other=0.0)
        of_met = head.to(tl.int64) * num_tokens + base + met
        log_sum = tl.load(sums + of_met, mask=there, other=0.0)
        delta = tl.load(deltas + of_met, mask=there, other=0.0)
        # Transposed: a row is a key. Queries past the end have no gradient, and keys past it are not written.
        scores = tl.dot(k, tl.trans(q)) * (scale * _LOG2_E)
        weights = tl.exp2(scores - log_sum[None, :])
        if WINDOW:
            weights = tl.where(tl.abs(row[:, None] - met[None, :]) <= WINDOW, weights, 0.0)
        grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v)
        grad_weights = tl.dot(v, tl.trans(grad))
        grad_scores = weights * (grad_weights - delta[None, :])
        grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k)
    target = grad_qkv + base * (3 * H * E) + head * E + row[:, None] * (3 * H * E)
    tl.store(target + 2 * H * E + column, grad_v.to(grad_qkv.dtype.element_ty), mask=own)
    _store_turned_back(target + H * E, grad_k * scale, own, (base + row)[:, None] * HALF, cos, sin, E, OWN)


@triton.jit
def _store_turned_back(target, gradient, own, at_angle, cos, sin, E: tl.constexpr, OWN: tl.constexpr):
    """Undo the rotation of a gradient (OWN, E) and write it to rows of `target` (OWN, 1)."""
    HALF: tl.constexpr = E // 2
    column = tl.arange(0, HALF)
    first, second = tl.split(tl.permute(tl.reshape(gradient, [OWN, 2, HALF]), [0, 2, 1]))
    c = tl.load(cos + at_angle + column, mask=own, other=0.0)
    s = tl.load(sin + at_angle + column, mask=own, other=0.0)
    tl.store(target + column, (first * c + second * s).to(target.dtype.element_ty), mask=own)
    tl.store(target + HALF + column, (second * c - first * s).to(target.dtype.element_ty), mask=own)
