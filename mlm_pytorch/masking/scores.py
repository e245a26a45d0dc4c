"""Where masking's randomness comes from: one integer score per position.

A score is `hash32 << 20 | position`: 32 random bits above the position within the document. Scores of one document are
thus unique by construction, and an order over them has no ties; integer arithmetic leaves nothing to rounding, so the
same scores select the same positions on every device and under every layout.
"""

# B batch, L length, T tokens of a pack, D documents of a pack

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlm_pytorch.tokens import values_at_hand

POSITION_BITS = 20
MAX_POSITIONS = 1 << POSITION_BITS
MILLION = 1_000_000

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


# SplitMix64 (Steele, Lea, Flood 2014): its increment, and the finalizer's two multipliers (Stafford's variant 13).
_RATE_SALT = 0x72617465
_STEP = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FIRST, _SECOND = (_signed(m) for m in _MULTIPLIERS)


def millionths(prob: float) -> int:
    """A probability as an integer number of millionths, the unit of every rate in this room; one between two of them
    as the lower, so that a sixth of six is one.

    >>> millionths(0.15), millionths(1 / 6)
    (150000, 166666)

    Raises ValueError outside [0, 1].
    """
    if isinstance(prob, Tensor) and prob.numel() != 1:
        raise ValueError(f"probability of shape {tuple(prob.shape)} is not one number; pass a tensor of millionths")
    if not 0.0 <= prob <= 1.0:  # NaN fails both comparisons
        raise ValueError(f"probability {prob} is outside [0, 1]; pass a share such as 0.15")
    # In 32 bits 0.7 is less than that; the digits that they hold are what was meant.
    bytes_ = getattr(getattr(prob, "dtype", None), "itemsize", 8)
    exact = float(prob) if bytes_ >= 8 else round(float(prob), 7)
    nearest = round(exact * MILLION)
    return nearest - (nearest > exact * MILLION * (1 + 1e-12))


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's finalizer, elementwise: a bijection of 64 bits in which every input bit moves every output bit.

    int64 multiplication wraps alike on CPU and CUDA; `>>` is arithmetic there, so shifted-in sign bits are masked off.
    """
    x = (x ^ ((x >> 30) & (_U64 >> 30))) * _FIRST
    x = (x ^ ((x >> 27) & (_U64 >> 27))) * _SECOND
    return x ^ ((x >> 31) & (_U64 >> 31))


def _mix64_int(x: int) -> int:
    """`mix64` of one Python integer, as an int64's value: seeds and salts are mixed on the host."""
    x &= _U64
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & _U64
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & _U64
    return _signed(x ^ (x >> 31))


def remix(scores: Tensor, salt: int) -> Tensor:
    """64 fresh random bits per score, int64: independent of the scores' order and of the bits under other salts."""
    return mix64(scores ^ _mix64_int(salt))


def draw_scores(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Scores from a torch generator (the global one by default, so `torch.manual_seed` governs them).

    like: (B, L) or (T,), any dtype: gives shape and device. Returns int64 of that shape; the position in a score counts
    along the last dimension.

    Raises ValueError where the last dimension exceeds 2**20.
    """
    length = like.shape[-1] if like.dim() else 1
    if length > MAX_POSITIONS:
        raise ValueError(f"length {length} exceeds {MAX_POSITIONS} positions; cut the input into shorter pieces")
    # torch.compile takes no symbolic shape where a generator is named, be it None
    given: dict[str, Any] = {} if generator is None else {"generator": generator}
    bits = torch.randint(0, 1 << 32, like.shape, device=like.device, dtype=torch.int64, **given)
    return bits.bitwise_left_shift_(POSITION_BITS).bitwise_or_(torch.arange(length, device=like.device))


def hash_scores(seed: int, visits: Tensor, pieces: Tensor, positions: Tensor) -> Tensor:
    """Scores as a hash of (seed, visit, piece, position): no state, the same on every device and in every layout.

    visits, pieces, positions: int64, broadcast against each other: how often the piece has been served, its index in
    the store, and the position counted from the piece's start, below 2**20. Returns int64 of the broadcast shape.

    Visits and pieces are mixed before they meet the positions, so give them the smallest shape that broadcasts: (B, 1)
    against (L,) costs one mix per position, (T,) against (T,) three. `flat_scores` does so for packs.

    Raises ValueError for positions outside [0, 2**20) (checked on CPU only: elsewhere it would stall the device).
    """
    _check_positions(positions)
    return _score(_streams(seed, visits, pieces), positions)


def _check_positions(positions: Tensor) -> None:
    if values_at_hand(positions) and positions.numel():
        low, high = (int(x) for x in torch.aminmax(positions))
        if low < 0 or high >= MAX_POSITIONS:
            raise ValueError(
                f"positions {low}..{high} leave [0, {MAX_POSITIONS}); count from the start of each piece, "
                "and cut pieces shorter"
            )


def _streams(seed: int, visits: Tensor, pieces: Tensor) -> Tensor:
    """64 bits that stand for one visit to one piece: where its SplitMix64 sequence starts."""
    return mix64(mix64(pieces * _STEP + _mix64_int(seed)) + (visits + 1) * _STEP)


def _score(streams: Tensor, positions: Tensor) -> Tensor:
    # The highest 32 bits after the finalizer's last multiplication: its last step mends the bits below these.
    x = streams + (positions + 1) * _STEP
    x = (x ^ ((x >> 30) & (_U64 >> 30))) * _FIRST
    x = (x ^ ((x >> 27) & (_U64 >> 27))) * _SECOND
    return ((x >> (32 - POSITION_BITS)) & (_U32 << POSITION_BITS)) | positions


def document_of_token(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """(T,) int64: which document each token of a pack belongs to. cu_seqlens: (D + 1,) int64."""
    documents = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    return torch.repeat_interleave(documents, cu_seqlens.diff(), output_size=num_tokens)


def flat_scores(
    seed: int, visits: Tensor, pieces: Tensor, cu_seqlens: Tensor, *, num_tokens: int | None = None
) -> Tensor:
    """`hash_scores` of a pack: (T,) int64, from one visit and one index per piece.

    visits, pieces: int64 (D,). cu_seqlens: (D + 1,), the pieces' bounds. num_tokens: T; given, no device has to be
    waited for. What is not a piece of the store, such as a tail of padding, may have any numbers.

    Raises ValueError for pieces longer than 2**20 (checked on CPU only) or numbers that don't fit the bounds.
    """
    if not visits.shape == pieces.shape == (cu_seqlens.numel() - 1,):
        raise ValueError(
            f"visits {tuple(visits.shape)} and pieces {tuple(pieces.shape)} do not fit {cu_seqlens.numel() - 1} "
            "documents; pass one number of each per document"
        )
    bounds = cu_seqlens.to(torch.int64)
    num_tokens = int(bounds[-1]) if num_tokens is None else num_tokens
    document = document_of_token(bounds, num_tokens)
    positions = torch.arange(num_tokens, device=bounds.device) - bounds.index_select(0, document)
    _check_positions(positions)
    return _score(_streams(seed, visits, pieces).index_select(0, document), positions)


def hash_rates(seed: int, visits: Tensor, pieces: Tensor, low: int, high: int) -> Tensor:
    """A masking rate per document, uniform over the millionths low..high: as stateless as the scores.

    visits, pieces: int64 (D,) or broadcasting. Returns int64, what selections take as `mask_prob`.

    >>> hash_rates(0, torch.zeros(1, dtype=torch.int64), torch.arange(1), 150_000, 150_000).tolist()
    [150000]

    Raises ValueError unless 0 <= low <= high <= 1,000,000.
    """
    if not 0 <= low <= high <= MILLION:
        raise ValueError(f"rates {low}..{high} leave [0, {MILLION}] or fall; pass millionths with low <= high")
    bits = (remix(_streams(seed, visits, pieces), _RATE_SALT) >> 32) & _U32
    return low + ((bits * (high - low + 1)) >> 32)
