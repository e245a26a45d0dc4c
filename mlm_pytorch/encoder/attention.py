"""Attention that never crosses a piece's border, one small function per way of computing it.

Shapes: B batch, L length, T tokens of a pack, D pieces in a pack, H heads, E width of a head, P pieces of one bucket.

Three ways, one result:

- `attend_varlen`: a flat pack on CUDA in half precision, by torch's own variable-length kernel.
- `attend_buckets`: a flat pack anywhere else. Pieces of like length are gathered into one dense block each, so that a
  pack costs a few large matrix products instead of many small ones. On CPUs with bfloat16 units this runs at about
  twice the speed of `scaled_dot_product_attention`, whose CPU kernel gains nothing from bfloat16.
- `attend_padded`: rows of a padded batch, by `scaled_dot_product_attention` with a mask.

`window` is the number of positions seen on each side, the token itself not counted (ModernBERT's
`local_attention // 2`); None sees the whole piece.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKET_STEP = 16  # lengths are rounded up to this: 2% of padding on text, a third of the blocks of exact lengths
LONGEST_DENSE = 512  # above it, keeping the attention weights for backward costs more memory than they save time

_softmax_backward = torch.ops.aten._softmax_backward_data.default


# ------------------------------------------------------------------------------------------------- rotary positions


def rotary_tables(position_ids: Tensor, theta: float, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (Su et al. 2021), half-split layout.

    Args:
        position_ids: (...,) positions within a piece, counted from 0.
        theta: base of the geometric frequencies.
        head_dim: E, even.

    Returns:
        Two float32 tensors (..., E / 2).

    Example:
        >>> cos, sin = rotary_tables(torch.tensor([0, 1]), theta=10_000.0, head_dim=4)
        >>> cos[0].tolist(), sin[0].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angle = position_ids[..., None].float() / theta**exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle; computed in float32, returned in x's dtype.

    `cos` and `sin` (…, E / 2) broadcast against the halves of `x` (…, E). The inverse is the same with `-sin`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


# --------------------------------------------------------------------------------------------------- flat, by bucket


@dataclass(frozen=True)
class Bucket:
    """Pieces of one pack whose lengths round up to the same `length`."""

    num_pieces: int  # P
    length: int
    start: int | None  # first token where the pieces lie in one stretch and all have `length`: then no gather is needed
    index: (
        Tensor | None
    )  # (P * length,) token of each slot, 0 at the slots past a piece's end; None where `start` is set
    valid: Tensor | None  # (P, length) bool, False past a piece's end; None where `start` is set


@dataclass(frozen=True)
class Buckets:
    """How one pack is gathered into dense blocks and put back; made once per pack and shared by all layers."""

    buckets: tuple[Bucket, ...]
    inverse: Tensor  # (T,) slot of each token among the blocks laid end to end

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> "Buckets":
        """Plan a pack whose pieces are bounded by `cu_seqlens` (D + 1,), read on the host.

        Example:
            >>> [(b.num_pieces, b.length, b.start) for b in Buckets.of(torch.tensor([0, 32, 64, 69])).buckets]
            [(2, 32, 0), (1, 16, None)]
        """
        device = cu_seqlens.device
        cu = cu_seqlens.to("cpu", torch.int64)
        starts, lengths = cu[:-1], cu.diff()
        rounded = (lengths + BUCKET_STEP - 1) // BUCKET_STEP * BUCKET_STEP
        inverse = torch.empty(int(cu[-1]), dtype=torch.int64)
        buckets, offset = [], 0
        for length in rounded.unique().flip(0).tolist():
            if length == 0:
                continue
            where = (rounded == length).nonzero().squeeze(1)
            start_P, length_P = starts[where], lengths[where]
            slots = torch.arange(length)
            valid = slots < length_P[:, None]
            tokens = start_P[:, None] + slots
            inverse[tokens[valid]] = offset + torch.arange(len(where) * length).view_as(valid)[valid]
            offset += len(where) * length
            whole = bool(valid.all()) and bool((start_P == start_P[0] + length * torch.arange(len(where))).all())
            if whole:
                buckets.append(Bucket(len(where), length, int(start_P[0]), None, None))
            else:
                index = tokens.masked_fill(~valid, 0).view(-1).to(device)
                buckets.append(Bucket(len(where), length, None, index, valid.to(device)))
        return cls(tuple(buckets), inverse.to(device))


@lru_cache(maxsize=64)
def _band(length: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(length, device=device)
    return (position[:, None] - position).abs() <= window


def _bias(bucket: Bucket, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What is added to the scores (H, P, length, length): -inf where a query must not look. None where all is seen."""
    allowed = None
    if window is not None and window < bucket.length - 1:
        allowed = _band(bucket.length, window, device)
    if bucket.valid is not None:
        keys = bucket.valid[:, None, :]
        # A slot past the end sees itself, so that its row stays finite; nothing reads that row.
        keys = keys | torch.eye(bucket.length, dtype=torch.bool, device=device)
        allowed = keys if allowed is None else keys & allowed
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


def _gather(x_HTE: Tensor, bucket: Bucket) -> Tensor:
    num_heads, _, width = x_HTE.shape
    if bucket.start is not None:
        block = x_HTE[:, bucket.start : bucket.start + bucket.num_pieces * bucket.length]
    else:
        assert bucket.index is not None
        block = x_HTE.index_select(1, bucket.index)
    return block.reshape(num_heads * bucket.num_pieces, bucket.length, width)


class _BucketAttention(torch.autograd.Function):
    """Rotary positions and attention over the buckets of a pack, from `qkv` to the heads' outputs.

    One function instead of a chain of views: autograd would write a zero-filled tensor of the pack's size for every
    slice of it, once per bucket and input.
    """

    @staticmethod
    def forward(ctx, qkv_T3HE, cos_TE, sin_TE, buckets: Buckets, window: int | None):
        num_tokens, _, num_heads, head_dim = qkv_T3HE.shape
        scale = head_dim**-0.5
        with torch.autocast(qkv_T3HE.device.type, enabled=False):
            q, k, v = qkv_T3HE.permute(1, 2, 0, 3).contiguous()  # each (H, T, E)
            q, k = rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE)
            blocks, saved = [], []
            for bucket in buckets.buckets:
                q_, k_, v_ = _gather(q, bucket), _gather(k, bucket), _gather(v, bucket)
                scores = torch.bmm(q_, k_.transpose(1, 2)).mul_(scale)
                bias = _bias(bucket, window, scores.dtype, scores.device)
                if bias is not None:
                    scores.view(num_heads, bucket.num_pieces, bucket.length, bucket.length).add_(bias)
                weights = torch.softmax(scores, dim=-1)
                blocks.append(torch.bmm(weights, v_).view(num_heads, -1, head_dim))
                saved += [q_, k_, v_, weights]
            out = torch.cat(blocks, dim=1).transpose(0, 1)[buckets.inverse]
        ctx.save_for_backward(cos_TE, sin_TE, *saved)
        ctx.buckets, ctx.scale = buckets, scale
        return out.reshape(num_tokens, num_heads * head_dim)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos_TE, sin_TE, *saved = ctx.saved_tensors
        (grad_out,) = grads
        num_tokens = len(grad_out)
        num_heads = grad_out.shape[1] // (cos_TE.shape[-1] * 2)
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_HTE = grad_out.view(num_tokens, num_heads, -1).transpose(0, 1).contiguous()
            grad_q, grad_k, grad_v = [], [], []
            for i, bucket in enumerate(ctx.buckets.buckets):
                q_, k_, v_, weights = saved[4 * i : 4 * i + 4]
                grad_ = _gather(grad_HTE, bucket)
                if bucket.valid is not None:  # slots past the end gathered token 0's gradient
                    grad_.view(num_heads, bucket.num_pieces, bucket.length, -1).mul_(bucket.valid[..., None])
                grad_v.append(torch.bmm(weights.transpose(1, 2), grad_).view(num_heads, -1, grad_.shape[-1]))
                grad_weights = torch.bmm(grad_, v_.transpose(1, 2))
                grad_scores = _softmax_backward(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
                grad_q.append(torch.bmm(grad_scores, k_).view(num_heads, -1, grad_.shape[-1]))
                grad_k.append(torch.bmm(grad_scores.transpose(1, 2), q_).view(num_heads, -1, grad_.shape[-1]))
            grad_qkv = grad_out.new_empty(num_tokens, 3, num_heads, grad_HTE.shape[-1])
            for part, blocks in enumerate((grad_q, grad_k, grad_v)):
                grad_THE = torch.cat(blocks, dim=1).transpose(0, 1)[ctx.buckets.inverse]
                grad_qkv[:, part] = rotate(grad_THE, cos_TE[:, None], -sin_TE[:, None]) if part < 2 else grad_THE
        return grad_qkv, None, None, None, None


def attend_buckets(
    qkv_T3HE: Tensor, cos_TE: Tensor, sin_TE: Tensor, buckets: Buckets, window: int | None = None
) -> Tensor:
    """Attention within the pieces of a flat pack, on any device and in any floating dtype.

    Args:
        qkv_T3HE: queries, keys and values before rotation (T, 3, H, E).
        cos_TE: cosines of the positions (T, E / 2), from `rotary_tables`.
        sin_TE: sines of the positions, likewise.
        buckets: the pack's plan, from `Buckets.of(cu_seqlens)`.
        window: positions seen on each side, or None for the whole piece.

    Returns:
        (T, H * E), in qkv's dtype.
    """
    if all(bucket.length <= LONGEST_DENSE for bucket in buckets.buckets):
        out = _BucketAttention.apply(qkv_T3HE, cos_TE, sin_TE, buckets, window)
        assert isinstance(out, Tensor)
        return out
    q, k, v = qkv_T3HE.permute(1, 2, 0, 3)
    q, k = rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE)
    blocks = []
    for bucket in buckets.buckets:
        shape = (q.shape[0], bucket.num_pieces, bucket.length, q.shape[-1])
        q_, k_, v_ = (_gather(x, bucket).view(shape).transpose(0, 1) for x in (q, k, v))
        if window is not None and bucket.length > 4 * window:
            out = _attend_band(q_, k_, v_, bucket.valid, window)
        else:
            bias = _bias(bucket, window, q.dtype, q.device)
            if bias is not None:
                bias = bias.view(-1, 1, bucket.length, bucket.length)
            out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=bias)
        blocks.append(out.transpose(0, 1).reshape(q.shape[0], -1, q.shape[-1]))
    return torch.cat(blocks, dim=1).transpose(0, 1)[buckets.inverse].flatten(1)


def _attend_band(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, window: int) -> Tensor:
    """Sliding-window attention in time and memory linear in the length, for (P, H, length, E) blocks.

    Queries are cut into chunks of `window`; each chunk meets the keys of its own span and of one window to each side.
    """
    num_pieces, num_heads, length, head_dim = q.shape
    chunks = -(-length // window)
    tail = chunks * window - length
    q = F.pad(q, (0, 0, 0, tail)).view(num_pieces, num_heads, chunks, window, head_dim)
    k, v = (F.pad(x, (0, 0, window, window + tail)).unfold(2, 3 * window, window).transpose(-1, -2) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None]
    key = torch.arange(3 * window, device=q.device) - window
    band = (query - key).abs() <= window  # (window, 3 window): positions relative to the chunk's first query
    keys = torch.ones(1, length, dtype=torch.bool, device=q.device) if valid is None else valid
    keys = F.pad(keys, (window, window + tail)).unfold(1, 3 * window, window)  # (P, chunks, 3 window)
    mask = band & keys[:, None, :, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.reshape(num_pieces, num_heads, chunks * window, head_dim)[:, :, :length]


# ---------------------------------------------------------------------------------------------- flat, CUDA; padded


def varlen_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend_varlen` can run: CUDA and half precision."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def attend_varlen(
    qkv_T3HE: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None = None,
) -> Tensor:
    """Attention within the pieces of a flat pack by torch's variable-length kernel; arguments as `attend_buckets`.

    `cu_seqlens` (D + 1,) is int32 on the same device, `max_seqlen` the longest piece or any bound above it.
    """
    from torch.nn.attention.varlen import varlen_attn  # takes a second, which only CUDA users should pay

    q, k, v = qkv_T3HE.unbind(1)
    q, k = rotate(q, cos_TE[:, None], sin_TE[:, None]), rotate(k, cos_TE[:, None], sin_TE[:, None])
    span = (-1, -1) if window is None else (window, window)
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=span)
    assert isinstance(out, Tensor)
    return out.flatten(1)


def attend_padded(
    qkv_BL3HE: Tensor, cos_LE: Tensor, sin_LE: Tensor, attended_BL: Tensor | None, window: int | None = None
) -> Tensor:
    """Attention within the rows of a padded batch.

    Args:
        qkv_BL3HE: queries, keys and values before rotation (B, L, 3, H, E).
        cos_LE: cosines of the columns (L, E / 2), from `rotary_tables`.
        sin_LE: sines of the columns, likewise.
        attended_BL: bool, False at padding; None where there is none.
        window: columns seen on each side, or None for all.

    Returns:
        (B, L, H * E). Rows of padding hold unspecified finite values.
    """
    length = qkv_BL3HE.shape[1]
    q, k, v = qkv_BL3HE.permute(2, 0, 3, 1, 4)
    q, k = rotate(q, cos_LE, sin_LE), rotate(k, cos_LE, sin_LE)
    mask = None
    if window is not None and window < length - 1:
        mask = _band(length, window, q.device)[None, None]
    if attended_BL is not None:
        keys = attended_BL[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=q.device)
        mask = keys if mask is None else mask & keys
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
