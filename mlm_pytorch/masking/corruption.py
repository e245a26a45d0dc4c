"""What the model sees at the selected positions: the mask token, a random token, or the token itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlm_pytorch.masking.scores import MILLION, millionths, remix
from mlm_pytorch.tokens import IGNORE_INDEX, values_at_hand

_SALT = 0x636F7272757074  # any constant that no other user of `remix` takes
_U32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Corrupted:
    """A masked batch; every field has the shape of the ids it came from.

    input_ids: what the model sees. labels: the originals at selected positions, IGNORE_INDEX elsewhere.
    selected: bool, the positions in the loss.
    """

    input_ids: Tensor
    labels: Tensor
    selected: Tensor


def corrupt(
    input_ids: Tensor,
    selected: Tensor,
    scores: Tensor,
    *,
    mask_token_id: int,
    replace_prob: float = 0.9,
    random_token_prob: float = 0.0,
    drawable_ids: Tensor | None = None,
) -> Corrupted:
    """Replace the selected tokens: unchanged with probability 1 - replace_prob, a random token with random_token_prob,
    else the mask token (Devlin et al. 2019, section 3.1: 80/10/10 is replace_prob=0.9, random_token_prob=0.1).

    input_ids: int64, any shape. selected: bool, scores: int64, both of that shape. drawable_ids: (N,) int64, what a
    random token may be (`SpecialTokens.drawable_ids`); uniform over these, the original included.

    Decisions come from the scores by a further mix, not from their order: they do not depend on which positions were
    selected. Integer thresholds over 32 bits, so shares are exact to 2**-32.

    >>> ids = torch.tensor([[5, 6, 7]]); chosen = torch.tensor([[False, True, False]])
    >>> corrupt(ids, chosen, torch.zeros_like(ids), mask_token_id=4, replace_prob=1.0).input_ids.tolist()
    [[5, 4, 7]]

    Raises ValueError for probabilities outside [0, 1], random_token_prob > replace_prob, a random token without
    drawable_ids, or shapes that differ.
    """
    if not input_ids.shape == selected.shape == scores.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)}, selected {tuple(selected.shape)} and scores {tuple(scores.shape)} "
            "differ in shape; pass one score and one flag per id"
        )
    if selected.dtype != torch.bool:
        raise ValueError(f"selected is {selected.dtype}; pass bool, True at the positions to predict")
    replace, random_token = millionths(replace_prob), millionths(random_token_prob)
    if random_token > replace:
        raise ValueError(
            f"random_token_prob {random_token_prob} exceeds replace_prob {replace_prob}, of which it is a part; "
            "lower it or raise replace_prob"
        )
    if random_token and (drawable_ids is None or drawable_ids.numel() == 0):
        raise ValueError(
            f"random_token_prob {random_token_prob} needs drawable_ids, the ids that may be drawn; "
            "pass SpecialTokens.drawable_ids() or set random_token_prob=0"
        )

    def shown(ids: Tensor, scores: Tensor) -> Tensor:
        """What takes the place of ids that are selected; elementwise."""
        if replace == MILLION and not random_token:
            return torch.full_like(ids, mask_token_id)
        bits = remix(scores, _SALT)
        draw = (((bits >> 32) & _U32) * MILLION) >> 32  # uniform over 0 .. 999_999
        result = ids.masked_fill(draw < replace, mask_token_id)
        if random_token:
            assert drawable_ids is not None
            which = ((bits & _U32) * drawable_ids.numel()) >> 32
            drawn = drawable_ids.index_select(0, which.flatten()).view_as(ids).to(ids.dtype)
            result = torch.where(draw < random_token, drawn, result)
        return result

    if not values_at_hand(selected):
        labels = input_ids.masked_fill(~selected, IGNORE_INDEX)
        return Corrupted(torch.where(selected, shown(input_ids, scores), input_ids), labels, selected)
    # where the host may look, only the selected positions are worked on
    places = selected.flatten().nonzero().flatten()
    originals = input_ids.flatten().index_select(0, places)
    replacements = shown(originals, scores.flatten().index_select(0, places))
    corrupted = input_ids.flatten().index_copy(0, places, replacements).view_as(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX).flatten().index_copy_(0, places, originals).view_as(input_ids)
    return Corrupted(corrupted, labels, selected)
