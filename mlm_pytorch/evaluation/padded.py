"""A model that takes padded batches, made to take flat packs as well, so that every measure runs on every model.

Shapes: T tokens of a pack, D pieces in it, B rows, L columns, K wanted positions, W width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch.objective.head import logits_of
from mlm_pytorch.objective.padded import RowsInterface, inspect_rows
from mlm_pytorch.tokens import SpecialTokens

MOST_PADDING = 0.125  # of a block of rows; a pack whose lengths differ more is computed in several blocks


class PaddedModel(nn.Module):
    """A masked language model that is called with (B, L) ids and a padding mask, behind the face of the built-in
    encoder: flat packs in, logits at the wanted positions out.

    Args:
        model: the model. It is checked once, on two rows of random tokens: where its head computes the same from some
            positions as from all, only wanted positions meet the vocabulary. It stays in the mode in which it is.
        special: what its vocabulary reserves.
        max_seq_len: the longest piece that it takes, or None where it sets no limit.
        interface: how the model is called, where `inspect_rows` has found that out already.

    Raises:
        ValueError: the model does not return logits (B, L, V), V at least as large as the vocabulary.

    Example:
        >>> model = PaddedModel(BertForMaskedLM(config), special, max_seq_len=512)
        >>> model.logits_at(torch.tensor([1, 6]), torch.randint(5, 90, (9,)), cu_seqlens=torch.tensor([0, 4, 9])).shape
        torch.Size([2, 96])
    """

    def __init__(
        self,
        model: nn.Module,
        special: SpecialTokens,
        max_seq_len: int | None = None,
        interface: RowsInterface | None = None,
    ):
        super().__init__()
        self.inner = model
        self.training = model.training  # of the wrapping: `eval()` and `train()` reach both
        self.special, self.max_seq_len = special, max_seq_len
        self.interface = interface or inspect_rows(model, special, max_seq_len)

    @property
    def head(self) -> str | None:
        """Before which module wanted positions are gathered; None where all of them pass through the head."""
        return self.interface.head

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.inner.parameters()).device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Logits at every position: (B, L, V) for rows, (T, V) for a flat pack."""
        everywhere = torch.arange(input_ids.numel(), device=input_ids.device)
        if cu_seqlens is None and attention_mask is not None:
            return logits_of(self.inner(input_ids, **self.interface.arguments(attention_mask)), self.inner)
        logits = self.logits_at(everywhere, input_ids, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return logits if cu_seqlens is not None else logits.view(*input_ids.shape, -1)

    def logits_at(
        self,
        positions: Tensor,
        input_ids: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,  # noqa: ARG002 -- of the face; lengths are read from the borders
    ) -> Tensor:
        """Logits (K, V) at `positions` (K,) of a flat pack, or of rows (B, L) without padding, flattened.

        Raises:
            ValueError: a piece longer than `max_seq_len`.
        """
        if cu_seqlens is None:
            self._check_length(input_ids.shape[1])
            return self.interface.logits_at(self.inner, positions, input_ids)
        result = None
        for rows_BL, mask_BL, token_BL in self._blocks(input_ids, cu_seqlens):
            slot_T = torch.full_like(input_ids, -1)
            slot_T[token_BL[mask_BL]] = mask_BL.flatten().nonzero().squeeze(1)
            wanted = slot_T[positions]
            here = (wanted >= 0).nonzero().squeeze(1)
            if len(here):
                logits = self.interface.logits_at(self.inner, wanted[here], rows_BL, mask_BL)
                if result is None:
                    result = logits.new_empty(len(positions), logits.shape[-1])
                result[here] = logits
        assert result is not None, "no position is wanted"
        return result

    def hidden_states(self, input_ids: Tensor, *, cu_seqlens: Tensor) -> Tensor:
        """Hidden states (T, W) of a flat pack, as the model's trunk (`base_model`) gives them.

        Raises:
            ValueError: a model without such a trunk, that is, none of Hugging Face's.
        """
        if not isinstance(getattr(self.inner, "base_model", None), nn.Module):
            raise ValueError(
                f"{type(self.inner).__name__} has no base_model that gives hidden states, which a probe needs; "
                "leave the probe out, or use a Hugging Face model"
            )
        result = None
        for rows_BL, mask_BL, token_BL in self._blocks(input_ids, cu_seqlens):
            trunk: Any = self.inner.base_model
            output = trunk(rows_BL, attention_mask=mask_BL.long())
            states = output.last_hidden_state
            if result is None:
                result = states.new_zeros(len(input_ids), states.shape[-1])
            # index_put with a mask on both sides keeps the gradient's path for fine-tuning
            result = result.index_put((token_BL[mask_BL],), states[mask_BL])
        assert result is not None
        return result

    def _check_length(self, length: int) -> None:
        if self.max_seq_len is not None and length > self.max_seq_len:
            raise ValueError(
                f"a piece of {length} tokens exceeds max_position_embeddings {self.max_seq_len}; "
                "cut the documents shorter or choose a model with longer positions"
            )

    def _blocks(self, input_ids: Tensor, cu_seqlens: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Padded rows of like length: ids (B, L), a mask of what is no padding, and each slot's token in the pack."""
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        sizes = lengths.tolist()
        self._check_length(max(sizes))
        for block in blocks_of_like_length(sizes):
            chosen = torch.tensor(block, device=input_ids.device)
            columns = torch.arange(sizes[block[0]], device=input_ids.device)
            mask_BL = columns < lengths[chosen, None]
            token_BL = (starts[chosen, None] + columns).masked_fill(~mask_BL, 0)
            yield input_ids[token_BL].masked_fill(~mask_BL, self.special.pad_token_id), mask_BL, token_BL


def blocks_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows that are padded together, longest first, at most `MOST_PADDING` of each block; empty rows fall
    out.

    >>> blocks_of_like_length([3, 40, 0, 39, 4])
    [[1, 3], [4, 0]]
    """
    blocks: list[list[int]] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not lengths[index]:
            continue
        if blocks:
            longest = lengths[blocks[-1][0]]
            padding += longest - lengths[index]
            if padding <= MOST_PADDING * longest * (len(blocks[-1]) + 1):
                blocks[-1].append(index)
                continue
        blocks.append([index])
        padding = 0
    return blocks
