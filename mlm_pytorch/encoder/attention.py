"""Attention that never crosses a piece's border, one small function per way of computing it.

Shapes: B batch, L length, T tokens of a pack, D pieces in a pack, H heads, E width of a head.

Four ways, one result:

- `tiles.attend_tiles`: a flat pack on CUDA in half precision, by kernels of our own that Triton compiles.
- `attend_varlen`: the same by torch's variable-length kernel, where nothing is compiled.
- `blocks.attend_blocks`: a flat pack anywhere else. Pieces of like length become one dense block each. On CPUs with
  bfloat16 units this runs at about twice the speed of `scaled_dot_product_attention`, whose CPU kernel gains nothing
  from bfloat16. `queries.attend_queries` does the same where only some tokens' output is read.
- `attend_padded`: rows of a padded batch, by `scaled_dot_product_attention` with a mask.

`window` is the number of positions seen on each side, the token itself not counted (ModernBERT's
`local_attention // 2`); None sees the whole piece.
"""

import importlib.util
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

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


def band(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: who is at most `window` positions away. Kept for the next call."""
    near = _kept_band(length, window, device)
    if type(near) is not Tensor:  # of torch.export or a FakeTensorMode: without values, no use to others
        _kept_band.cache_clear()
    return near


@lru_cache(maxsize=64)
def _kept_band(length: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(length, device=device)
    return (position[:, None] - position).abs() <= window


# ----------------------------------------------------------------------------------------------------------- kernels


def rotated_parts(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned by their angles, and values, each (..., H, E), of qkv (..., 3, H, E).

    `cos` and `sin` (..., E / 2) have one row per token. Each part is a tensor of its own: compiled, that is one pass
    over `qkv`, and its backward one that writes the gradient of `qkv`.
    """
    q, k, v = qkv.unbind(-3)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def varlen_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend_varlen` can run: CUDA and half precision."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def tiles_available(head_dim: int) -> bool:
    """Whether the kernels of `encoder.tiles` serve heads of this width here: they need Triton."""
    return head_dim in (32, 64, 128) and importlib.util.find_spec("triton") is not None


def attend_varlen(
    q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, cu_seqlens: Tensor, max_seqlen: int, window: int | None = None
) -> Tensor:
    """Attention within the pieces of a flat pack by torch's variable-length kernel, from `rotated_parts`: (T, H * E).

    `cu_seqlens` (D + 1,) is int32 on the same device, `max_seqlen` the longest piece or any bound above it.
    """
    from torch.nn.attention.varlen import varlen_attn  # takes a second, which only CUDA users should pay

    span = (-1, -1) if window is None else (window, window)
    out = varlen_attn(q_THE, k_THE, v_THE, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=span)
    assert isinstance(out, Tensor)
    return out.flatten(1)


def attend_padded(
    q_BLHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor, attended_BL: Tensor | None, window: int | None = None
) -> Tensor:
    """Attention within the rows of a padded batch, from `rotated_parts`.

    Args:
        q_BLHE, k_BLHE, v_BLHE: queries, keys and values (B, L, H, E).
        attended_BL: bool, False at padding; None where there is none.
        window: columns seen on each side, or None for all.

    Returns:
        (B, L, H * E). Rows of padding hold unspecified finite values.
    """
    length = q_BLHE.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q_BLHE, k_BLHE, v_BLHE))
    mask = None
    if window is not None and window < length - 1:
        mask = band(length, window, q.device)[None, None]
    if attended_BL is not None:
        keys = attended_BL[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=q.device)
        mask = keys if mask is None else mask & keys
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
