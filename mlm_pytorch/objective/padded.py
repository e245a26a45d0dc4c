"""Masking of padded batches: a flat pack's masks, laid out in rows.

Shapes: B rows, L width, K selected positions.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mlm_pytorch.objective.packs import Pack, PackMasker


class Rows(Protocol):
    """Whole pieces in rows, as `mlm_pytorch.data` builds them."""

    @property
    def attention_mask(self) -> np.ndarray:
        """(B, L) bool: True at tokens of pieces."""
        ...

    def flat(self) -> Pack:
        """The rows' pieces end to end, without padding."""
        ...


@dataclass(frozen=True)
class MaskedRows:
    """A padded batch as the model sees it, and what it must say.

    Attributes:
        input_ids: (B, L) int64, corrupted.
        attention_mask: (B, L) bool: True at tokens of pieces, False at padding.
        positions: (K,) int64, the selected positions, counted through the rows (row * L + column).
        labels: (K,) int64, the original ids there.
        num_tokens: tokens of pieces in the batch, padding not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    num_tokens: int

    @property
    def num_targets(self) -> int:
        """K, known without asking the device."""
        return len(self.labels)


def mask_padded(masker: PackMasker, rows: Rows, mask_prob: int) -> MaskedRows:
    """Mask a padded batch at a rate of `mask_prob` millionths: for each piece what it gets in a flat pack, whatever
    the masker selects.
    """
    attention_mask = torch.from_numpy(rows.attention_mask)
    masked = masker(rows.flat(), mask_prob)
    input_ids = torch.full(attention_mask.shape, masker.special.pad_token_id)
    input_ids[attention_mask] = masked.input_ids
    positions = attention_mask.flatten().nonzero().squeeze(1)[masked.positions]
    return MaskedRows(input_ids, attention_mask, positions, masked.labels, masked.num_tokens)
